//! One GPU: opens it, loads kernels as they are asked for, allocates and copies. The launches themselves are in `launch.rs`.
//!
//! Every allocation belongs to one [`Queue`] and is used in it alone, so the order of the queue is all the synchronisation there is.

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUgraphInstantiate_flags_enum, CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels::{Kernel, find, kernels};
use super::nvrtc::{Architecture, Compiler, Image};
use super::sources;
use crate::error::DeviceError;

/// Where the parts of CUDA are that no system loader finds, and where compiled kernels are kept.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The folder of NVRTC and cuBLAS; where the system looks if nothing is said.
    pub libraries: Option<PathBuf>,
    /// The folder of compiled kernels; they are not kept if nothing is said.
    pub cache: Option<PathBuf>,
}

/// Functions of the driver that are called: those that came last into its interface, and the first of all.
const DRIVER_FUNCTIONS: [&str; 7] = [
    "cuInit",
    "cuMemAllocAsync",
    "cuStreamBeginCapture_v2",
    "cuGraphInstantiateWithFlags",
    "cuLaunchKernel",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
];

/// What a GPU is, as reports name it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its compute capability times ten.
    pub architecture: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
    /// The version of CUDA that the driver was made for: `12.4`.
    pub driver: String,
    /// The version of NVRTC.
    pub nvrtc: String,
}

impl Facts {
    /// Whether its tensor cores take INT4.
    pub fn has_int4(&self) -> bool {
        self.architecture < 90
    }
}

/// A kernel that is loaded.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) function: CudaFunction,
    /// The dynamic shared memory that it may have, in bytes.
    pub(super) most_shared: u32,
}

/// An open GPU.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    compiler: Compiler,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// The shared memory that a block may have, in bytes.
    most_shared: u32,
    /// The major version of CUDA that the driver was made for.
    driver: u32,
    facts: Facts,
    setup: Setup,
}

/// Describes what the driver refused.
pub(super) fn refused(action: impl Into<String>) -> impl FnOnce(DriverError) -> DeviceError {
    let action = action.into();
    move |error| DeviceError::Driver { action, reason: reason(error) }
}

/// What the driver says about an error.
fn reason(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// Makes sure that the driver is there and has what will be called: cudarc panics where it is not.
fn check_driver() -> Result<(), DeviceError> {
    // SAFETY: opens the driver under its official names and closes it.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver { searched: "libcuda.so".into() });
    }
    // SAFETY: the library is there, as was just seen; it stays open for good.
    let driver = unsafe { sys::culib() };
    // SAFETY: the functions are looked up, and not called.
    let lacks = |name: &&&'static str| unsafe { driver.get::<*const c_void>(name.as_bytes()) }.is_err();
    match DRIVER_FUNCTIONS.iter().find(lacks) {
        Some(function) => Err(DeviceError::OldDriver { function }),
        None => Ok(()),
    }
}

/// Opens the first GPU that the driver shows.
fn open_context() -> Result<Arc<CudaContext>, DeviceError> {
    check_driver()?;
    // What cudarc looks up beyond what was checked, it looks up with a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| CudaContext::new(0)));
    let opened = opened.map_err(|_| DeviceError::NoDevice { reason: "the driver lacks a function".into() })?;
    opened.map_err(|error| DeviceError::NoDevice { reason: reason(error) })
}

impl Gpu {
    /// Opens the first GPU. Which that is, `CUDA_VISIBLE_DEVICES` decides.
    ///
    /// # Errors
    /// No driver, no GPU, a GPU that is too old, no NVRTC: [`DeviceError::is_absence`] holds for all of them.
    pub fn open(setup: &Setup) -> Result<Self, DeviceError> {
        let context = open_context()?;
        // SAFETY: `Queue` promises that nothing is used in two streams.
        unsafe { context.disable_event_tracking() };
        let attribute = |which| context.attribute(which).map(|value| value as u32).map_err(refused("describe itself"));
        let name = context.name().map_err(refused("tell its name"))?;
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if 10 * major + minor < 75 {
            return Err(DeviceError::OldDevice { name, major, minor });
        }
        let driver = driver_version()?;
        let compiler = Compiler::open_for(driver.0, setup.libraries.as_deref(), setup.cache.clone())?;
        let facts = Facts {
            name,
            architecture: 10 * major + minor,
            multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: context.total_mem().map_err(refused("tell its memory"))? as u64,
            l2_bytes: u64::from(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            driver: format!("{}.{}", driver.0, driver.1),
            nvrtc: compiler.version(),
        };
        let most_shared = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let (functions, setup) = (Mutex::default(), setup.clone());
        let gpu = Self { context, compiler, functions, most_shared, driver: driver.0, facts, setup };
        if gpu.compiler.major() > driver.0 {
            gpu.check_compiler()?;
        }
        Ok(gpu)
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The major version of CUDA that the driver was made for.
    pub(super) fn driver_major(&self) -> u32 {
        self.driver
    }

    /// Where the libraries are.
    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Makes a queue of work.
    ///
    /// # Errors
    /// What the driver says.
    pub fn queue(&self) -> Result<Queue<'_>, DeviceError> {
        let stream = self.context.new_stream().map_err(refused("make a stream"))?;
        Ok(Queue { gpu: self, stream })
    }

    /// Loads the smallest file, to learn whether the driver takes what a compiler that is newer than it makes.
    fn check_compiler(&self) -> Result<(), DeviceError> {
        match self.prepare("tcq4_fwht_f32") {
            Err(DeviceError::Driver { .. }) => {
                let (nvrtc, driver) = (self.compiler.version(), self.facts.driver.clone());
                Err(DeviceError::NewCompiler { nvrtc, driver })
            }
            other => other,
        }
    }

    /// Gives a kernel; compiles and loads its file if this is the first of it.
    ///
    /// # Errors
    /// What the compiler or the driver says.
    pub(super) fn function(&self, kernel: Kernel) -> Result<Function, DeviceError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if !functions.contains_key(kernel.name) {
            self.load(kernel.family.file, &mut functions)?;
        }
        functions.get(kernel.name).cloned().ok_or_else(|| DeviceError::NoKernel { name: kernel.name.into() })
    }

    /// Compiles and loads the file of a kernel, if that has not been done.
    ///
    /// # Errors
    /// What the compiler or the driver says.
    pub fn prepare(&self, kernel: &str) -> Result<(), DeviceError> {
        self.function(find(kernel)?).map(drop)
    }

    fn load(&self, file: &'static str, into: &mut HashMap<&'static str, Function>) -> Result<(), DeviceError> {
        let image = self.compiler.compile(sources::unit(file), Architecture(self.facts.architecture))?;
        let image = match image {
            Image::Cubin(bytes) => Ptx::from_binary(bytes),
            Image::Ptx(bytes) => Ptx::from_src(String::from_utf8_lossy(&bytes).trim_end_matches('\0')),
        };
        let module = self.context.load_module(image).map_err(refused(format!(
            "load {file}, which NVRTC {} compiled, with a driver of CUDA {}",
            self.facts.nvrtc, self.facts.driver
        )))?;
        for kernel in kernels().filter(|kernel| kernel.family.file == file) {
            let function =
                module.load_function(kernel.name).map_err(refused(format!("find the kernel {}", kernel.name)))?;
            into.insert(kernel.name, self.with_all_shared(function, kernel.name)?);
        }
        Ok(())
    }

    /// Lets a kernel have all the shared memory of a block. This is done once, before any launch: the limit belongs to the function, not to a queue.
    fn with_all_shared(&self, function: CudaFunction, name: &str) -> Result<Function, DeviceError> {
        let own = function.get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
        let own = own.map_err(refused(format!("tell the shared memory of {name}")))?;
        let most_shared = self.most_shared.saturating_sub(own as u32);
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let allowed = function.set_attribute(limit, most_shared as i32);
        allowed.map_err(refused(format!("give {most_shared} B of shared memory to {name}")))?;
        Ok(Function { function, most_shared })
    }
}

/// The version of CUDA that the driver was made for: major, minor.
fn driver_version() -> Result<(u32, u32), DeviceError> {
    let mut version = 0;
    // SAFETY: writes the one number.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    status.result().map_err(refused("tell the version of its driver"))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// A value that can lie in the memory of a GPU: plain bytes.
pub trait Plain: NoUninit + AnyBitPattern + Zeroable + Copy {}

impl<T: NoUninit + AnyBitPattern + Zeroable + Copy> Plain for T {}

/// Values in the memory of the GPU. Used in the queue that made it, and in no other.
#[derive(Debug)]
pub struct Buffer<T> {
    bytes: CudaSlice<u8>,
    len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T> Buffer<T> {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn slice(&self) -> &CudaSlice<u8> {
        &self.bytes
    }
}

/// A queue of work of a GPU: what is put in is done in that order.
#[derive(Debug)]
pub struct Queue<'a> {
    gpu: &'a Gpu,
    stream: Arc<CudaStream>,
}

impl<'a> Queue<'a> {
    /// The GPU.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Panics where a buffer is another queue's: nothing would keep the work of the two in order.
    #[track_caller]
    pub(super) fn own<T>(&self, buffer: &Buffer<T>) {
        assert!(Arc::ptr_eq(buffer.bytes.stream(), &self.stream), "a buffer of another queue");
    }

    /// Makes the GPU the one that calls of this thread mean.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        self.stream.context().bind_to_thread().map_err(refused("be used by this thread"))
    }

    /// Allocates room for `len` values whose contents are unspecified; at least one is allocated.
    ///
    /// # Errors
    /// What the driver says: memory may be short.
    pub fn room<T: Plain>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        let bytes = (len * size_of::<T>()).max(size_of::<T>()).max(1);
        // SAFETY: bytes of any value are valid, as `Plain` says.
        let bytes = unsafe { self.stream.alloc::<u8>(bytes) };
        let bytes = bytes.map_err(refused(format!("allocate {len} values")))?;
        Ok(Buffer { bytes, len, of: std::marker::PhantomData })
    }

    /// Copies values to the GPU.
    ///
    /// # Errors
    /// As [`Queue::room`].
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.room(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies values into a buffer, from its beginning on.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If the buffer is shorter, or another queue's, as everywhere.
    pub fn write<T: Plain>(&self, values: &[T], buffer: &mut Buffer<T>) -> Result<(), DeviceError> {
        assert!(values.len() <= buffer.len, "{} values for a buffer of {}", values.len(), buffer.len);
        if values.is_empty() {
            return Ok(());
        }
        self.own(buffer);
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.stream.memcpy_htod(bytes, &mut buffer.bytes).map_err(refused("take values"))?;
        // Without pinned memory the driver has read the values when the call returns; this holds for pinned memory, too.
        self.wait()
    }

    /// Copies the first values of a buffer back, after everything before has been done.
    ///
    /// # Errors
    /// What the driver says, also about the kernels before.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn read<T: Plain>(&self, buffer: &Buffer<T>, values: &mut [T]) -> Result<(), DeviceError> {
        assert!(values.len() <= buffer.len, "{} values of a buffer of {}", values.len(), buffer.len);
        if values.is_empty() {
            return Ok(());
        }
        self.own(buffer);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let view = buffer.bytes.slice(0..bytes.len());
        self.stream.memcpy_dtoh(&view, bytes).map_err(refused("give values back"))?;
        self.wait()
    }

    /// Copies all of a buffer back.
    ///
    /// # Errors
    /// As [`Queue::read`].
    pub fn download<T: Plain>(&self, buffer: &Buffer<T>) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); buffer.len];
        self.read(buffer, &mut values)?;
        Ok(values)
    }

    /// Copies one buffer over another of the same length, on the GPU.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy<T: Plain>(&self, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<(), DeviceError> {
        self.own(from);
        self.own(to);
        self.stream.memcpy_dtod(&from.bytes, &mut to.bytes).map_err(refused("copy memory"))
    }

    /// Fills a buffer with a byte.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fill<T>(&self, buffer: &mut Buffer<T>, byte: u8) -> Result<(), DeviceError> {
        use cudarc::driver::DevicePtrMut;
        self.own(buffer);
        self.bind()?;
        let bytes = buffer.bytes.num_bytes();
        let (pointer, _record) = buffer.bytes.device_ptr_mut(&self.stream);
        // SAFETY: the memory belongs to the buffer, and any bytes are valid values.
        let filled = unsafe { result::memset_d8_async(pointer, byte, bytes, self.stream.cu_stream()) };
        filled.map_err(refused("fill memory"))
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// What the driver says about anything that was put in.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(refused("finish its work"))
    }

    /// Records what `work` puts in, without doing it, and does it `rounds` times; gives the seconds of one round, by the clock of the GPU.
    /// The first of the rounds is not counted.
    ///
    /// # Errors
    /// What `work` or the driver says.
    pub fn time(&self, rounds: usize, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        self.wait()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(refused("record work"))?;
        let recorded = work();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags_enum(0)).map_err(refused("record work"));
        recorded?;
        let Some(graph) = graph? else {
            return Err(DeviceError::Driver { action: "record work".into(), reason: "nothing was put in".into() });
        };
        let play = || graph.launch().map_err(refused("repeat work"));
        let mark =
            || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(refused("look at its clock"));
        play()?;
        self.wait()?;
        let begin = mark()?;
        for _ in 0..rounds {
            play()?;
        }
        let end = mark()?;
        self.wait()?;
        let milliseconds = begin.elapsed_ms(&end).map_err(refused("look at its clock"))?;
        Ok(f64::from(milliseconds) / 1e3 / rounds as f64)
    }
}
