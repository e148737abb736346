//! Plugins: two components written by hand, one of which misbehaves in every way it can.

use std::path::{Path, PathBuf};

use tallow_sandbox::{
    Limits,
    plugin::{
        Conversation, EnvironmentPlugin, Grants, Message, Next, Outcome, PluginError, Reference,
        Role, Settings, Split, Stop, VerifierPlugin,
    },
};

fn settings(file: &str) -> Settings {
    Settings {
        path: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins").join(file),
        options: "{}".to_owned(),
        limits: Limits { fuel_millions: 100, memory_mib: 64, ..Limits::default() },
        grants: Grants::default(),
        workers: 2,
        seed: 1,
    }
}

fn said(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

fn conversation(reply: &str) -> Conversation {
    Conversation {
        messages: vec![said(Role::User, "What is 6 times 7?"), said(Role::Assistant, reply)],
        stop: Stop::Finished,
        reference: Reference::Answer("42".to_owned()),
    }
}

#[test]
fn a_verifier_judges_a_batch_in_order() {
    let plugin = VerifierPlugin::start(settings("exact.wat")).expect("it starts");
    assert_eq!(plugin.name(), "exact");
    let replies: Vec<String> =
        (0..500).map(|it| if it % 3 == 0 { "42".to_owned() } else { it.to_string() }).collect();
    let verdicts = plugin.judge(replies.iter().map(|it| conversation(it)).collect());
    assert_eq!(verdicts.len(), replies.len());
    for (reply, verdict) in replies.iter().zip(verdicts) {
        let verdict = verdict.expect("a verdict");
        let right = reply == "42";
        assert_eq!(verdict.outcome, if right { Outcome::Correct } else { Outcome::Incorrect });
        assert_eq!(verdict.reward, f32::from(u8::from(right)));
        assert_eq!(verdict.reason.is_none(), right);
    }
    let silent = Conversation { messages: Vec::new(), ..conversation("") };
    assert_eq!(plugin.judge(vec![silent])[0].as_ref().map(|it| it.reward), Ok(0.0));
}

#[test]
fn a_misbehaving_plugin_is_contained_and_costs_no_other_its_verdict() {
    let plugin = VerifierPlugin::start(settings("exact.wat")).expect("it starts");
    for (letter, told) in [
        ("L", "`judge` took more than 100 million instructions"),
        ("T", "`judge` failed: wasm trap: wasm `unreachable` instruction executed"),
        ("G", "`judge` took more than 64 MiB of memory"),
        ("R", "`judge` nested its calls too deeply"),
        ("N", "`judge` gave a reward or a part that is not finite"),
        ("C", "`judge` gave 0 verdicts for 1"),
        ("O", "`judge` failed: "),
        ("U", "`judge` failed: "),
    ] {
        let verdicts = plugin.judge(["42", letter, "43"].map(conversation).to_vec());
        let rewards = |index: usize| verdicts[index].as_ref().map(|it| it.reward);
        assert_eq!((rewards(0), rewards(2)), (Ok(1.0), Ok(0.0)), "beside {letter}");
        match &verdicts[1] {
            Err(PluginError::Call(why)) if why.starts_with(told) => {}
            other => panic!("{letter}: {other:?}"),
        }
    }
    let flooding = plugin.judge(vec![conversation("F")]);
    assert_eq!(flooding[0].as_ref().map(|it| it.reward), Ok(0.0));
    let unanswered = Conversation { reference: Reference::None, ..conversation("42") };
    assert_eq!(
        plugin.judge(vec![unanswered, conversation("42")])[0],
        Err(PluginError::Call("no answer to compare with".to_owned()))
    );
}

#[test]
fn what_is_no_plugin_is_refused_with_its_reason() {
    let refused = |settings| VerifierPlugin::start(settings).err().expect("it is refused");
    assert_eq!(
        refused(Settings { options: r#"{"a":1}"#.to_owned(), ..settings("exact.wat") }),
        PluginError::Refused("this plugin takes no options".to_owned())
    );
    let told = refused(settings("counting.wat")).to_string();
    assert!(told.contains("does not export `open` of `rl:plugin/verifier@0.1.0`"), "{told}");
    let told = refused(settings("absent.wasm")).to_string();
    assert!(told.starts_with("cannot read the file ") && told.contains("absent.wasm"), "{told}");
    let folder = tempfile::tempdir().expect("a folder");
    for content in
        ["", "(module)", "\0asm", "(component (import \"wasi:sockets/tcp@0.2.0\" (func)))"]
    {
        let path: PathBuf = folder.path().join("broken.wasm");
        std::fs::write(&path, content).expect("written");
        let error = refused(Settings { path, ..settings("exact.wat") });
        assert!(matches!(error, PluginError::Unusable(_)), "{content:?}: {error:?}");
    }
    let grants = Grants { read: vec!["/no/such/folder".into()], variables: Vec::new() };
    let error = refused(Settings { grants, ..settings("exact.wat") });
    assert_eq!(error, PluginError::Grant("there is no folder /no/such/folder".to_owned()));
}

#[test]
fn an_environment_gives_tasks_replies_and_turns() {
    let plugin = EnvironmentPlugin::start(settings("counting.wat")).expect("it starts");
    let about = plugin.opened();
    assert_eq!((about.train, about.test, about.verifier.as_str()), (50, 40, "exact"));
    let task = plugin.task(Split::Train, 7).expect("a task");
    assert_eq!(task.prompt, [said(Role::User, "07?")]);
    assert_eq!(task.reference, Reference::Answer("08".to_owned()));
    assert_eq!(plugin.task(Split::Test, 39).expect("a task").prompt, [said(Role::User, "89?")]);
    assert_eq!(
        plugin.task(Split::Test, 40),
        Err(PluginError::Call("there is no such task".to_owned()))
    );
    let reply = |style: &str| plugin.reply(task.clone(), style.to_owned(), 1).expect("it answers");
    assert_eq!((reply("bare"), reply("long")), (Some("=08".to_owned()), None));
    let step = |replies: &[&str]| {
        plugin.step(task.clone(), replies.iter().map(|it| said(Role::Assistant, it)).collect())
    };
    assert_eq!(step(&["?"]), Ok(Next::More(vec![said(Role::User, "and once more?")])));
    assert_eq!(step(&["=08"]), Ok(Next::Done));
    assert_eq!(step(&[""]), Ok(Next::Done));
    assert!(matches!(step(&["T"]), Err(PluginError::Call(_))));
    assert_eq!(step(&["=08"]), Ok(Next::Done), "after a trap");
}
