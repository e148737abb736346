//! What the compiler does not hold: headers, names, the arrows between crates, published configs.

mod support;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Names that say nothing: the noun has not been found yet.
const DRAWERS: &[&str] = &["utils", "helpers", "common", "misc", "types", "base", "manager"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the repository, build folders aside.
fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "examples", "envs", "verifiers", "policies", "experiments"]
            .iter()
            .map(|it| root().join(it))
            .collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy();
            if path.is_dir() && !name.starts_with("target") && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the repository has more files than {}", found.len());
    found
}

#[test]
fn every_file_opens_with_what_it_is() {
    let bare: Vec<PathBuf> = rust_files()
        .into_iter()
        .filter(|it| !std::fs::read_to_string(it).expect("a readable file").starts_with("//!"))
        .collect();
    assert!(bare.is_empty(), "without a `//!` header: {bare:#?}");
}

#[test]
fn no_file_is_a_drawer() {
    let drawers: Vec<PathBuf> = rust_files()
        .into_iter()
        .filter(|it| {
            it.file_stem().is_some_and(|stem| DRAWERS.iter().any(|drawer| stem == *drawer))
        })
        .collect();
    assert!(drawers.is_empty(), "named for no noun: {drawers:#?}");
}

/// Names of all packages that `package` needs to be built, directly or not.
fn needed_by(metadata: &Metadata, package: &str) -> HashSet<String> {
    let names: HashMap<&PackageId, String> =
        metadata.packages.iter().map(|it| (&it.id, it.name.to_string())).collect();
    let resolve = metadata.resolve.as_ref().expect("metadata with dependencies");
    let nodes: HashMap<&PackageId, _> = resolve.nodes.iter().map(|it| (&it.id, it)).collect();
    let start = names.iter().find(|(_, name)| *name == package).expect("the package is there").0;
    let mut seen = HashSet::new();
    let mut open = vec![*start];
    while let Some(id) = open.pop() {
        for dependency in &nodes[id].deps {
            let built =
                dependency.dep_kinds.iter().any(|it| it.kind != DependencyKind::Development);
            if built && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| names[id].clone()).collect()
}

#[test]
fn the_arrows_between_crates_point_one_way() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        // Only what this machine builds: the rest of the lock file may never have been fetched.
        .other_options(["--offline", "--filter-platform", "host-tuple"].map(str::to_owned))
        .exec()
        .expect("cargo metadata");
    for (package, forbidden) in [
        ("tallow-sandbox", &["candle", "tallow"][..]),
        ("tallow-verifiers", &["candle", "tallow-envs", "tallow-policies"][..]),
        ("tallow-envs", &["candle", "tallow-policies"][..]),
        ("tallow-policies", &["tallow"][..]),
    ] {
        let reached: Vec<String> = needed_by(&metadata, package)
            .into_iter()
            .filter(|it| forbidden.iter().any(|prefix| it.starts_with(prefix)))
            .collect();
        assert!(reached.is_empty(), "{package} reaches {reached:?}");
    }
    let whole = needed_by(&metadata, "tallow");
    assert!(whole.contains("candle-core") && whole.contains("tallow-envs"), "the walk works");
}

#[test]
fn every_published_config_passes_the_check() {
    let mut checked = 0;
    for entry in std::fs::read_dir(root().join("experiments")).expect("experiments") {
        let config = entry.expect("an entry").path().join("config.toml");
        if !config.is_file() {
            continue;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_tallow"))
            .arg("check")
            .arg(&config)
            .output()
            .expect("the binary starts");
        let told = String::from_utf8_lossy(&output.stderr);
        let errors = told.lines().filter(|it| it.starts_with("error")).count();
        let missing = told
            .lines()
            .filter(|it| {
                it.starts_with("error")
                    && (it.contains("cannot read the file")
                        || it.contains("No such file or directory")
                        || it.contains("no model folder there"))
            })
            .count();
        if errors > 0 && errors == missing {
            support::skipped(&format!("{} needs data that is not here", config.display()));
            continue;
        }
        assert!(output.status.success(), "{}:\n{told}", config.display());
        checked += 1;
    }
    assert!(checked > 0, "no config was checked");
}
