//! Compiles device code with NVRTC, from sources in memory. Compiled images are kept in a folder, by the hash of all that went into them.
//!
//! Needs no GPU; which kernels there are is not known here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use super::cache::Cache;
use super::library::Open;
use crate::error::DeviceError;
use crate::util::hash::sha256_hex;

type Status = c_int;
type Program = *mut c_void;
type Strings = *const *const c_char;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// The functions of NVRTC that are used. They are the same in all of its versions since 11.2.
#[derive(Debug)]
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    log_size: Size,
    log: Get,
    cubin_size: Size,
    cubin: Get,
    ptx_size: Size,
    ptx: Get,
    architecture_count: unsafe extern "C" fn(*mut c_int) -> Status,
    architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    message: unsafe extern "C" fn(Status) -> *const c_char,
}

impl Functions {
    fn of(library: &Open) -> Result<Self, DeviceError> {
        // SAFETY: the types are those of nvrtc.h; `Compiler` keeps the library open as long as the functions.
        unsafe {
            Ok(Self {
                version: library.function("nvrtcVersion")?,
                create: library.function("nvrtcCreateProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                ptx_size: library.function("nvrtcGetPTXSize")?,
                ptx: library.function("nvrtcGetPTX")?,
                architecture_count: library.function("nvrtcGetNumSupportedArchs")?,
                architectures: library.function("nvrtcGetSupportedArchs")?,
                message: library.function("nvrtcGetErrorString")?,
            })
        }
    }

    fn message(&self, status: Status) -> String {
        // SAFETY: NVRTC gives a static string for every number.
        unsafe { CStr::from_ptr((self.message)(status)) }.to_string_lossy().into_owned()
    }

    /// Reads one of the byte strings of a program.
    fn bytes(&self, program: &Created<'_>, size: Size, get: Get) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program exists.
        let status = unsafe { size(program.program, &raw mut length) };
        if status != 0 {
            return Err(self.message(status));
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: as above, and there is room for as many bytes as it asked for.
        let status = unsafe { get(program.program, bytes.as_mut_ptr().cast()) };
        if status == 0 { Ok(bytes) } else { Err(self.message(status)) }
    }
}

/// A program that is destroyed when it goes.
struct Created<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, and not destroyed before.
        unsafe { (self.functions.destroy)(&raw mut self.program) };
    }
}

/// Device code, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Machine code of one architecture.
    Cubin(Vec<u8>),
    /// Code of a virtual architecture, which the driver compiles: for GPUs that the compiler does not know yet.
    Ptx(Vec<u8>),
}

/// A kind of GPU, by its compute capability times ten: 90 for 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture(pub u32);

/// What is compiled: a source and the headers that it can include.
#[derive(Debug, Clone, Copy)]
pub struct Unit<'a> {
    /// The name of the source, for messages.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// The names and the texts of headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// The flags that every kernel is compiled with, beside the architecture.
const OPTIONS: [&str; 2] = ["--std=c++17", "--device-as-default-execution-space"];

/// NVRTC, and a place where images are kept.
#[derive(Debug)]
pub struct Compiler {
    functions: Functions,
    library: Open,
    version: (i32, i32),
    known: Vec<Architecture>,
    cache: Cache,
}

impl Compiler {
    /// Finds NVRTC, in `folder` if one is given. Images are kept in `cache` if one is given.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`], [`DeviceError::NoFunction`].
    pub fn open(folder: Option<&Path>, cache: Option<PathBuf>) -> Result<Self, DeviceError> {
        Self::open_for(u32::MAX, folder, cache)
    }

    /// The same for a driver of this major version of CUDA: it takes what its own NVRTC and older ones make, and may refuse what newer ones do.
    ///
    /// # Errors
    /// As [`Compiler::open`].
    pub fn open_for(driver: u32, folder: Option<&Path>, cache: Option<PathBuf>) -> Result<Self, DeviceError> {
        let library = Open::find("NVRTC, the compiler of CUDA,", "nvrtc", driver, folder)?;
        let functions = Functions::of(&library)?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: both only write where they are told to.
        let failed = unsafe {
            (functions.version)(&raw mut major, &raw mut minor) != 0
                || (functions.architecture_count)(&raw mut count) != 0
        };
        let mut numbers = vec![0; if failed { 0 } else { count as usize }];
        // SAFETY: there is room for as many numbers as it announced.
        if !numbers.is_empty() && unsafe { (functions.architectures)(numbers.as_mut_ptr()) } != 0 {
            numbers.clear();
        }
        let known = numbers.into_iter().map(|number: c_int| Architecture(number as u32)).collect();
        Ok(Self { functions, library, version: (major, minor), known, cache: Cache::new(cache) })
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.version.0.unsigned_abs()
    }

    /// Its version: `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Where it was found; a bare name where the system's loader found it.
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    /// The architectures that it makes code for, ascending.
    pub fn architectures(&self) -> &[Architecture] {
        &self.known
    }

    /// Compiles a unit for an architecture, or takes the image from the cache: machine code where the compiler knows the architecture, else code
    /// of the nearest virtual one below.
    ///
    /// # Errors
    /// [`DeviceError::Architecture`] if it knows none below either; [`DeviceError::Compile`] with the compiler's messages.
    pub fn compile(&self, unit: Unit<'_>, architecture: Architecture) -> Result<Image, DeviceError> {
        let is_known = self.known.contains(&architecture);
        let nearest = self.known.iter().rev().find(|known| **known <= architecture);
        let Some(nearest) = nearest else {
            let architecture = format!("sm_{}", architecture.0);
            return Err(DeviceError::Architecture { version: self.version(), architecture });
        };
        let target = if is_known { format!("sm_{}", nearest.0) } else { format!("compute_{}", nearest.0) };
        let image = if is_known { Image::Cubin } else { Image::Ptx };
        let key = self.key(unit, &target);
        if let Some(bytes) = self.cache.get(&key) {
            return Ok(image(bytes));
        }
        let bytes = self.compile_for(unit, &target, is_known)?;
        self.cache.put(&key, &bytes);
        Ok(image(bytes))
    }

    /// Names an image by everything that it depends on.
    fn key(&self, unit: Unit<'_>, target: &str) -> String {
        let (major, minor) = self.version;
        let mut parts = vec![format!("nvrtc {major}.{minor}"), target.to_owned(), OPTIONS.join(" ")];
        parts.extend([unit.name, unit.text].map(str::to_owned));
        parts.extend(unit.headers.iter().flat_map(|(name, text)| [name, text].map(ToString::to_string)));
        let framed: Vec<u8> =
            parts.iter().flat_map(|part| part.len().to_le_bytes().into_iter().chain(part.bytes())).collect();
        sha256_hex(&framed)
    }

    fn compile_for(&self, unit: Unit<'_>, target: &str, is_known: bool) -> Result<Vec<u8>, DeviceError> {
        let fail = |status: String, log: String| DeviceError::Compile {
            file: unit.name.to_owned(),
            architecture: target.to_owned(),
            status,
            log,
        };
        let program = self.create(unit).map_err(|status| fail(status, String::new()))?;
        let options = OPTIONS.iter().map(ToString::to_string).chain([format!("--gpu-architecture={target}")]);
        let options: Vec<CString> = options.filter_map(|option| CString::new(option).ok()).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program exists, and the options outlive the call.
        let status = unsafe { (self.functions.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let functions = &self.functions;
        if status != 0 {
            let log = functions.bytes(&program, functions.log_size, functions.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
            return Err(fail(functions.message(status), log));
        }
        let (size, get) =
            if is_known { (functions.cubin_size, functions.cubin) } else { (functions.ptx_size, functions.ptx) };
        functions.bytes(&program, size, get).map_err(|status| fail(status, String::new()))
    }

    fn create(&self, unit: Unit<'_>) -> Result<Created<'_>, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{} has a zero byte", unit.name));
        let (name, source) = (text(unit.name)?, text(unit.text)?);
        let headers = unit.headers.iter().map(|(name, body)| Ok((text(name)?, text(body)?)));
        let headers: Vec<(CString, CString)> = headers.collect::<Result<_, String>>()?;
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let bodies: Vec<*const c_char> = headers.iter().map(|(_, body)| body.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: every string ends with a zero byte, the arrays have as many entries as is said, and NVRTC copies what it is given.
        let status = unsafe {
            let count = headers.len() as c_int;
            let create = self.functions.create;
            create(&raw mut program, source.as_ptr(), name.as_ptr(), count, bodies.as_ptr(), names.as_ptr())
        };
        let created = Created { functions: &self.functions, program };
        if status == 0 {
            return Ok(created);
        }
        std::mem::forget(created); // there is nothing to destroy
        Err(self.functions.message(status))
    }
}
