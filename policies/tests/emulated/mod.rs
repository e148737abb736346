//! A device for tests: the GPU's kernels, compiled by the C++ compiler and run on the CPU.
//!
//! Threads of a block are fibers that take turns (`src/gpu/kernels/emulation.h`); products are
//! plain loops. Slow, and stricter than a GPU: freed memory, arguments of the wrong type and
//! barriers that not all threads reach are errors.

#![expect(clippy::unwrap_used, reason = "what a test prepares must succeed")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use rayon::prelude::*;
use tallow_policies::PolicyError;
use tallow_policies::gpu::driver::{Argument, Driver, Kind, Launch, Operand, Precision, Product};
use tallow_policies::gpu::{Device, kernels};

/// An emulated device; where no C++ compiler is, nothing, and says that the test is skipped.
pub fn device(precision: Precision) -> Option<Device> {
    let Some(compiled) = library(precision) else {
        eprintln!("SKIPPED: no C++ compiler (c++) to run the GPU's kernels with");
        return None;
    };
    let memory = Mutex::new(HashMap::new());
    Some(Device::new(Arc::new(Emulated { compiled, precision, memory })))
}

#[derive(Debug)]
struct Emulated {
    compiled: &'static Library,
    precision: Precision,
    /// What is allocated, by address.
    memory: Mutex<HashMap<u64, Vec<Aligned>>>,
}

/// Memory comes aligned as a GPU's does, as far as the kernels look.
#[derive(Clone, Copy, Debug)]
#[repr(align(16))]
struct Aligned {
    _bytes: [u8; 16],
}

#[derive(Debug)]
struct Library {
    launch: LaunchFunction,
    kernels: HashMap<&'static str, Kernel>,
}

#[derive(Debug)]
struct Kernel {
    run: *const c_void,
    /// A letter for each argument: see `kind_of` in the header.
    signature: String,
}

// SAFETY: the pointers are to functions of a library that stays loaded.
unsafe impl Send for Library {}
// SAFETY: the header keeps its state in thread-local variables.
unsafe impl Sync for Library {}

type LaunchFunction =
    unsafe extern "C" fn(*const c_void, u32, u32, u32, u32, *const *const c_void) -> *const c_char;

fn library(precision: Precision) -> Option<&'static Library> {
    static F32: OnceLock<Option<Library>> = OnceLock::new();
    static BF16: OnceLock<Option<Library>> = OnceLock::new();
    let held = match precision {
        Precision::F32 => &F32,
        Precision::Bf16 => &BF16,
    };
    held.get_or_init(|| compile(precision)).as_ref()
}

const HEADER: &str = include_str!("../../src/gpu/kernels/emulation.h");

/// The kernels as one file that a C++ compiler takes.
fn source(precision: Precision) -> String {
    let mut text =
        format!("#define ELEMENT_BF16 {}\n{HEADER}", u8::from(precision == Precision::Bf16));
    for (name, source) in kernels::SOURCES {
        write!(text, "#line 1 \"{name}\"\n{source}").unwrap();
    }
    for (name, _) in kernels::KERNELS {
        writeln!(
            text,
            "extern \"C\" void run_{name}(void** arguments) {{ emulation::apply({name}, arguments); }}\n\
             extern \"C\" const char* signature_{name}() {{ return emulation::signature({name}); }}"
        )
        .unwrap();
    }
    text
}

fn compile(precision: Precision) -> Option<Library> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let base = folder.join(format!("kernels-{}-{}", precision.name(), std::process::id()));
    let (source_path, library_path) = (base.with_extension("cpp"), base.with_extension("so"));
    std::fs::write(&source_path, source(precision)).unwrap();
    let compiled = Command::new("c++")
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"])
        .args(["-ffp-contract=off", "-o"])
        .args([&library_path, &source_path])
        .output();
    let output = compiled.ok()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the kernels do not compile:\n{told}");
    let path = CString::new(library_path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string, and the library runs no code when it is opened.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "cannot open {}", library_path.display());
    for path in [source_path, library_path] {
        std::fs::remove_file(path).unwrap();
    }
    let symbol = |name: String| {
        let c_name = CString::new(name.as_str()).unwrap();
        // SAFETY: the handle is open and the name a C string.
        let found = unsafe { libc::dlsym(handle, c_name.as_ptr()) };
        assert!(!found.is_null(), "{name} is missing");
        found.cast_const()
    };
    let kernels = kernels::KERNELS.map(|(name, _)| {
        let signature = symbol(format!("signature_{name}"));
        // SAFETY: the source above declares this function so, and it returns a constant.
        let signature = unsafe {
            let signature: extern "C" fn() -> *const c_char = std::mem::transmute(signature);
            CStr::from_ptr(signature())
        };
        let signature = signature.to_str().unwrap().to_owned();
        (name, Kernel { run: symbol(format!("run_{name}")), signature })
    });
    // SAFETY: the header declares this function so.
    let launch: LaunchFunction =
        unsafe { std::mem::transmute(symbol("emulated_launch".to_owned())) };
    Some(Library { launch, kernels: kernels.into_iter().collect() })
}

impl Emulated {
    /// Fails unless the bytes lie within one allocation.
    fn check(&self, address: u64, bytes: usize) {
        let memory = self.memory.lock().unwrap();
        let within = memory.iter().any(|(start, held)| {
            *start <= address && address + bytes as u64 <= start + (held.len() * 16) as u64
        });
        assert!(within, "{bytes} bytes at {address:#x} are not allocated");
    }

    fn element(&self, address: u64, index: usize) -> f32 {
        // SAFETY: `multiply` checked that the matrix lies within an allocation.
        unsafe {
            match self.precision {
                Precision::F32 => *(address as *const f32).add(index),
                Precision::Bf16 => {
                    f32::from_bits(u32::from(*(address as *const u16).add(index)) << 16)
                }
            }
        }
    }
}

impl Driver for Emulated {
    fn name(&self) -> String {
        "emulation".to_owned()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn memory(&self) -> Result<(u64, u64), PolicyError> {
        Ok((1 << 30, 1 << 30))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, PolicyError> {
        // Not a number, as f32 and as bf16: what is read before it is written shows.
        let held = vec![Aligned { _bytes: [0xff; 16] }; bytes.div_ceil(16).max(1)];
        let address = held.as_ptr() as u64;
        self.memory.lock().unwrap().insert(address, held);
        Ok(address)
    }

    fn release(&self, address: u64, _bytes: usize) {
        assert!(self.memory.lock().unwrap().remove(&address).is_some(), "released twice");
    }

    fn upload(&self, bytes: &[u8], to: u64) -> Result<(), PolicyError> {
        self.check(to, bytes.len());
        // SAFETY: the destination was checked to be allocated.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), PolicyError> {
        self.check(from, bytes.len());
        // SAFETY: the source was checked to be allocated.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), PolicyError> {
        self.check(from, bytes);
        self.check(to, bytes);
        // SAFETY: both were checked to be allocated, and differ.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), PolicyError> {
        self.check(address, bytes);
        // SAFETY: the bytes were checked to be allocated.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), PolicyError> {
        let kernel = &self.compiled.kernels[launch.kernel];
        let element = if self.precision == Precision::Bf16 { 'B' } else { 'F' };
        let found: String = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(_, Kind::Element) => element,
                Argument::Address(_, Kind::F32) => 'F',
                Argument::Address(_, Kind::F64) => 'D',
                Argument::Address(_, Kind::U32) => 'U',
                Argument::U32(_) => 'u',
                Argument::U64(_) => 'l',
                Argument::F32(_) => 'f',
            })
            .collect();
        assert_eq!(found, kernel.signature, "arguments of {}", launch.kernel);
        let pointers: Vec<*const c_void> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(value, kind) => {
                    if *value != 0 {
                        let size = if *kind == Kind::F64 { 8 } else { 4 };
                        self.check(*value, size.min(2));
                    }
                    std::ptr::from_ref(value).cast()
                }
                Argument::U32(value) => std::ptr::from_ref(value).cast(),
                Argument::U64(value) => std::ptr::from_ref(value).cast(),
                Argument::F32(value) => std::ptr::from_ref(value).cast(),
            })
            .collect();
        let ((x, y), threads, shared) = (launch.grid, launch.threads, launch.shared_bytes);
        // SAFETY: number and types of the arguments were compared with the kernel's own above.
        let problem = unsafe {
            let run = self.compiled.launch;
            let problem = run(kernel.run, x, y, threads, shared, pointers.as_ptr());
            (!problem.is_null()).then(|| CStr::from_ptr(problem).to_string_lossy().into_owned())
        };
        match problem {
            None => Ok(()),
            Some(problem) => Err(PolicyError::device(format!("{}: {problem}", launch.kernel))),
        }
    }

    fn multiply(&self, product: &Product) -> Result<(), PolicyError> {
        let Product { rows, columns, inner, a, b, out, out_kind, scale, add } = *product;
        let each = self.precision.bytes();
        let extent = |stride: usize, transposed: bool, rows: usize, columns: usize| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            ((rows - 1) * stride + columns) * each
        };
        self.check(a.address, extent(a.stride, a.transposed, rows, inner));
        self.check(b.address, extent(b.stride, b.transposed, inner, columns));
        let out_element = out_kind == Kind::Element && self.precision == Precision::Bf16;
        self.check(out, rows * columns * if out_element { 2 } else { 4 });
        let index = |operand: Operand, row: usize, column: usize| {
            let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
            row * operand.stride + column
        };
        (0..rows).into_par_iter().for_each(|row| {
            let left: Vec<f32> =
                (0..inner).map(|k| self.element(a.address, index(a, row, k))).collect();
            for column in 0..columns {
                let mut sum = 0.0_f32;
                for (k, left) in left.iter().enumerate() {
                    sum += left * self.element(b.address, index(b, k, column));
                }
                let place = row * columns + column;
                // SAFETY: the output was checked to be allocated, and each place is one task's.
                unsafe {
                    if out_element {
                        let place = (out as *mut u16).add(place);
                        let held = f32::from_bits(u32::from(*place) << 16);
                        let value = if add { held + scale * sum } else { scale * sum };
                        *place = half::bf16::from_f32(value).to_bits();
                    } else {
                        let place = (out as *mut f32).add(place);
                        *place = if add { *place + scale * sum } else { scale * sum };
                    }
                }
            }
        });
        Ok(())
    }
}
