//! NVIDIA cards: the driver, NVRTC and cuBLAS, opened when a device is first asked for.
//!
//! Everything runs on one stream, in the order it was asked. The kernels are compiled for the card
//! that is there, once for each process and precision.

#![expect(unsafe_code, reason = "calls into the CUDA driver and its libraries")]

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::result::{self as nvrtc, NvrtcError};
use cudarc::nvrtc::sys as nvrtc_sys;

use super::buffer::Device;
use super::driver::{Argument, Driver, Kind, Launch, Precision, Product};
use super::kernels::{KERNELS, MOST_SHARED_BYTES, SOURCES};
use crate::error::PolicyError;

/// Whether the driver is installed and sees a card.
pub fn is_present() -> bool {
    // SAFETY: this only tries to open the library, whose initialisers are NVIDIA's.
    let driver = unsafe { sys::is_culib_present() };
    driver && CudaContext::device_count().is_ok_and(|count| count > 0)
}

/// Opens card number `ordinal`, counted as the driver counts them.
///
/// # Errors
/// If a library of CUDA 13 is missing, there is no such card, or it cannot run the kernels.
pub fn open(ordinal: usize, precision: Precision) -> Result<Device, PolicyError> {
    // SAFETY: this only tries to open the libraries, whose initialisers are NVIDIA's.
    let (driver, blas) = unsafe { (sys::is_culib_present(), blas_sys::is_culib_present()) };
    need("libcuda.so.1, which comes with the card's driver", driver)?;
    need_nvrtc()?;
    need("libcublas.so.13, part of CUDA 13", blas)?;
    Ok(Device::new(Arc::new(Cuda::open(ordinal, precision)?)))
}

fn need_nvrtc() -> Result<(), PolicyError> {
    // SAFETY: this only tries to open the library, whose initialisers are NVIDIA's.
    need("libnvrtc.so.13, part of CUDA 13", unsafe { nvrtc_sys::is_culib_present() })
}

fn need(library: &str, present: bool) -> Result<(), PolicyError> {
    if present {
        return Ok(());
    }
    Err(PolicyError::device(format!(
        "cannot open {library}: install it, or put its folder into LD_LIBRARY_PATH"
    )))
}

struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// cuBLAS takes one call at a time.
    blas: Mutex<CudaBlas>,
    functions: HashMap<&'static str, Function>,
    precision: Precision,
    name: String,
}

/// A kernel of a module that stays loaded as long as the process.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: the driver takes a function's handle on any thread.
unsafe impl Send for Function {}
// SAFETY: as above; launching does not change it.
unsafe impl Sync for Function {}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Cuda({}, {})", self.name, self.precision.name())
    }
}

impl Cuda {
    fn open(ordinal: usize, precision: Precision) -> Result<Self, PolicyError> {
        let context = CudaContext::new(ordinal).map_err(|error| {
            PolicyError::device(format!("cannot open card {ordinal}: {}", words(error)))
        })?;
        // SAFETY: every launch and copy goes to the one stream below, so nothing waits on events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| failed("make a stream", error))?;
        keep_freed_memory(&context).map_err(|error| failed("set up its memory", error))?;
        let capability =
            context.compute_capability().map_err(|error| failed("ask what it computes", error))?;
        let functions = load_kernels(&context, precision, capability)?;
        let blas = CudaBlas::new(Arc::clone(&stream))
            .map_err(|error| PolicyError::device(format!("cannot start cuBLAS: {error:?}")))?;
        let name = context.name().map_err(|error| failed("ask for its name", error))?;
        Ok(Self { context, stream, blas: Mutex::new(blas), functions, precision, name })
    }

    /// Makes this card the calling thread's.
    fn bind(&self) -> Result<(), PolicyError> {
        self.context.bind_to_thread().map_err(|error| failed("turn to the card", error))
    }
}

/// Keeps freed memory for the next allocation instead of giving it back at every wait.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    context.bind_to_thread()?;
    let threshold = u64::MAX;
    // SAFETY: the device is open, and the attribute's value is a u64, as the driver's manual says.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_ref(&threshold).cast_mut().cast(),
        )
        .result()
    }
}

/// The kernels as machine code for cards of a compute capability, such as (9, 0). Needs NVRTC, but
/// no card.
///
/// Machine code, because what a newer NVRTC writes as PTX an older driver does not read.
///
/// # Errors
/// If NVRTC is missing, does not know such cards, or refuses the sources.
pub fn compile(precision: Precision, (major, minor): (i32, i32)) -> Result<Vec<u8>, PolicyError> {
    need_nvrtc()?;
    let sources: String = SOURCES.iter().map(|(_, source)| *source).collect();
    let sources = CString::new(sources).expect("sources hold no zero byte");
    let options = [
        format!("--gpu-architecture=sm_{major}{minor}"),
        format!("-DELEMENT_BF16={}", u8::from(precision == Precision::Bf16)),
        "--std=c++17".to_owned(),
    ];
    let told = |what: &str, error: NvrtcError| {
        PolicyError::device(format!("NVRTC cannot {what} the kernels: {error:?}"))
    };
    let program =
        nvrtc::create_program(&sources, Some(c"tallow.cu")).map_err(|error| told("read", error))?;
    // SAFETY: the program was made above, lives until it is destroyed below, and the image has the
    // size that NVRTC gives.
    unsafe {
        if let Err(error) = nvrtc::compile_program(program, &options) {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|it| it as u8).collect();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches(['\0', '\n']);
            return Err(told(&format!("compile (sm_{major}{minor}: {log})"), error));
        }
        let mut size = 0;
        nvrtc_sys::nvrtcGetCUBINSize(program, &mut size)
            .result()
            .map_err(|error| told("assemble", error))?;
        let mut image = vec![0_u8; size];
        nvrtc_sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast())
            .result()
            .map_err(|error| told("assemble", error))?;
        nvrtc::destroy_program(program).map_err(|error| told("forget", error))?;
        Ok(image)
    }
}

fn load_kernels(
    context: &CudaContext,
    precision: Precision,
    capability: (i32, i32),
) -> Result<HashMap<&'static str, Function>, PolicyError> {
    let image = compile(precision, capability)?;
    context.bind_to_thread().map_err(|error| failed("turn to the card", error))?;
    // SAFETY: the image is a whole one, as NVRTC gave it.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
        .map_err(|error| failed("load the kernels", error))?;
    let mut functions = HashMap::new();
    for (name, wants_shared) in KERNELS {
        let c_name = CString::new(name).expect("names of kernels hold no zero byte");
        // SAFETY: the module was loaded above and is never unloaded.
        let function = unsafe { result::module::get_function(module, c_name) }
            .map_err(|error| failed(&format!("find the kernel {name}"), error))?;
        if wants_shared {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was found above.
            unsafe {
                result::function::set_function_attribute(
                    function,
                    attribute,
                    MOST_SHARED_BYTES as i32,
                )
            }
            .map_err(|error| failed(&format!("give {name} its shared memory"), error))?;
        }
        functions.insert(name, Function(function));
    }
    Ok(functions)
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn memory(&self) -> Result<(u64, u64), PolicyError> {
        self.bind()?;
        let (free, all) =
            result::mem_get_info().map_err(|error| failed("ask for its memory", error))?;
        Ok((free as u64, all as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, PolicyError> {
        self.bind()?;
        // SAFETY: the stream is open; whoever reads the memory has written it first.
        unsafe { result::malloc_async(self.stream.cu_stream(), bytes) }
            .map_err(|error| failed(&format!("allocate {} MiB", bytes >> 20), error))
    }

    fn release(&self, address: u64, _bytes: usize) {
        // There is nobody to tell: a card that fails here fails the next call as well.
        if self.bind().is_ok() {
            // SAFETY: the address came from `allocate`, and work that uses it was asked for before.
            let _told = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }

    fn upload(&self, bytes: &[u8], to: u64) -> Result<(), PolicyError> {
        self.bind()?;
        // SAFETY: the destination holds as many bytes. The driver copies from pageable memory
        // before it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("copy to the card", error))
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), PolicyError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the source holds as many bytes, and the copy has ended before the slice is used.
        unsafe {
            result::memcpy_dtoh_async(bytes, from, stream)
                .and_then(|()| result::stream::synchronize(stream))
        }
        .map_err(|error| failed("copy from the card", error))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), PolicyError> {
        self.bind()?;
        // SAFETY: both hold as many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("copy within the card", error))
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), PolicyError> {
        self.bind()?;
        // SAFETY: the address holds as many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("clear memory", error))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), PolicyError> {
        self.bind()?;
        let mut pointers: Vec<*mut c_void> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(value, _) | Argument::U64(value) => {
                    std::ptr::from_ref(value).cast_mut().cast()
                }
                Argument::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let Function(function) = self.functions[launch.kernel];
        let (x, y) = launch.grid;
        let stream = self.stream.cu_stream();
        // SAFETY: number and types of the arguments are the kernel's own, which the tests check
        // against its declaration; the addresses are of buffers that are freed on this stream.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, 1),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                stream,
                &mut pointers,
            )
        }
        .map_err(|error| failed(&format!("run {}", launch.kernel), error))
    }

    fn multiply(&self, product: &Product) -> Result<(), PolicyError> {
        self.bind()?;
        let Product { rows, columns, inner, a, b, out, out_kind, scale, add } = *product;
        let element = match self.precision {
            Precision::F32 => blas_sys::cudaDataType::CUDA_R_32F,
            Precision::Bf16 => blas_sys::cudaDataType::CUDA_R_16BF,
        };
        let out_type =
            if out_kind == Kind::Element { element } else { blas_sys::cudaDataType::CUDA_R_32F };
        let operation = |transposed: bool| {
            if transposed {
                blas_sys::cublasOperation_t::CUBLAS_OP_T
            } else {
                blas_sys::cublasOperation_t::CUBLAS_OP_N
            }
        };
        let beta = if add { 1.0_f32 } else { 0.0 };
        let handle = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        // cuBLAS counts by columns: what it sees are the transposes, outᵀ = bᵀ aᵀ.
        // SAFETY: sizes and strides are those of buffers that hold the matrices, and alpha and
        // beta outlive the call.
        unsafe {
            blas::gemm_ex(
                *handle.handle(),
                operation(b.transposed),
                operation(a.transposed),
                columns as i32,
                rows as i32,
                inner as i32,
                std::ptr::from_ref(&scale).cast(),
                b.address as *const c_void,
                element,
                b.stride as i32,
                a.address as *const c_void,
                element,
                a.stride as i32,
                std::ptr::from_ref(&beta).cast(),
                out as *mut c_void,
                out_type,
                columns as i32,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| {
            PolicyError::device(format!(
                "cannot multiply {rows} x {inner} by {inner} x {columns}: {error:?}"
            ))
        })
    }
}

fn failed(what: &str, error: DriverError) -> PolicyError {
    PolicyError::device(format!("cannot {what}: {}", words(error)))
}

/// The driver's own words for an error.
fn words(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}
