//! cuBLAS, to measure against: products of f16 and of INT8 matrices. Found at run time; where it is missing, the measurements go without it.

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;

use cudarc::driver::sys::CUstream;
use half::f16;

use super::gpu::{Buffer, Queue};
use super::launch::Argument;
use super::library::Open;
use crate::error::DeviceError;

type Status = c_int;
type Handle = *mut c_void;
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

// Numbers of cublas_api.h and library_types.h.
const TRANSPOSED: c_int = 1;
const AS_IS: c_int = 0;
const REAL_F16: c_int = 2;
const REAL_I8: c_int = 3;
const REAL_I32: c_int = 10;
const COMPUTE_F32: c_int = 68;
const COMPUTE_I32: c_int = 72;
const DEFAULT_ALGORITHM: c_int = -1;

/// What cuBLAS recommends as room to work in on the largest GPUs.
const WORKSPACE: usize = 64 << 20;

/// Tokens, rows of the matrix, columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) tokens: usize,
    pub(super) rows: usize,
    pub(super) k: usize,
}

/// cuBLAS in a queue.
pub(super) struct Blas<'a> {
    queue: &'a Queue<'a>,
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    gemm: GemmEx,
    workspace: Buffer<u8>,
    _library: Open,
}

fn check(status: Status, action: &str) -> Result<(), DeviceError> {
    if status == 0 {
        return Ok(());
    }
    Err(DeviceError::Driver { action: action.into(), reason: format!("cuBLAS returned status {status}") })
}

impl<'a> Blas<'a> {
    /// Opens it, a version that the driver of this major version of CUDA takes if there is one.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`], and what it says itself.
    pub(super) fn open(queue: &'a Queue<'a>, folder: Option<&Path>) -> Result<Self, DeviceError> {
        let library = Open::find("cuBLAS", "cublas", queue.gpu().driver_major(), folder)?;
        // SAFETY: the types are those of cublas_api.h; the library is kept as long as the functions.
        let (create, destroy, set_stream, set_workspace, gemm) = unsafe {
            (
                library.function::<unsafe extern "C" fn(*mut Handle) -> Status>("cublasCreate_v2")?,
                library.function::<unsafe extern "C" fn(Handle) -> Status>("cublasDestroy_v2")?,
                library.function::<unsafe extern "C" fn(Handle, CUstream) -> Status>("cublasSetStream_v2")?,
                library
                    .function::<unsafe extern "C" fn(Handle, *mut c_void, usize) -> Status>("cublasSetWorkspace_v2")?,
                library.function::<GemmEx>("cublasGemmEx")?,
            )
        };
        let workspace = queue.room::<u8>(WORKSPACE)?;
        queue.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle.
        check(unsafe { create(&raw mut handle) }, "open cuBLAS")?;
        let blas = Self { queue, handle, destroy, gemm, workspace, _library: library };
        // SAFETY: the handle and the stream exist, and both outlive `blas`.
        check(unsafe { set_stream(handle, queue.stream().cu_stream()) }, "give cuBLAS its stream")?;
        let room = blas.pointer(&blas.workspace);
        // SAFETY: the workspace is that long and lives as long as the handle.
        check(unsafe { set_workspace(handle, room, WORKSPACE) }, "give cuBLAS its memory")?;
        Ok(blas)
    }

    fn pointer<T>(&self, buffer: &Buffer<T>) -> *mut c_void {
        match self.queue.at(buffer) {
            Argument::Pointer(at) => at as *mut c_void,
            _ => ptr::null_mut(),
        }
    }

    /// `y[tokens][rows] = x[tokens][k] * w[rows][k]^T` with f32 sums.
    pub(super) fn f16(
        &self,
        w: &Buffer<f16>,
        x: &Buffer<f16>,
        y: &mut Buffer<f16>,
        sizes: Sizes,
    ) -> Result<(), DeviceError> {
        let (one, zero) = (1.0f32, 0.0f32);
        let scalars = [(&raw const one).cast(), (&raw const zero).cast()];
        self.multiply(
            [self.pointer(w), self.pointer(x), self.pointer(y)],
            scalars,
            [REAL_F16, REAL_F16, COMPUTE_F32],
            sizes,
        )
    }

    /// The same of INT8 with INT32 sums.
    pub(super) fn i8(
        &self,
        w: &Buffer<i8>,
        x: &Buffer<i8>,
        y: &mut Buffer<i32>,
        sizes: Sizes,
    ) -> Result<(), DeviceError> {
        let (one, zero) = (1i32, 0i32);
        let scalars = [(&raw const one).cast(), (&raw const zero).cast()];
        self.multiply(
            [self.pointer(w), self.pointer(x), self.pointer(y)],
            scalars,
            [REAL_I8, REAL_I32, COMPUTE_I32],
            sizes,
        )
    }

    /// cuBLAS counts columns first, so the matrix is its first factor and the result comes out as it should.
    fn multiply(
        &self,
        [w, x, y]: [*mut c_void; 3],
        [one, zero]: [*const c_void; 2],
        [input, output, compute]: [c_int; 3],
        Sizes { tokens, rows, k }: Sizes,
    ) -> Result<(), DeviceError> {
        self.queue.bind()?;
        let (m, n, k) = (rows as c_int, tokens as c_int, k as c_int);
        // SAFETY: the callers' buffers have these shapes, as `bench.rs` makes them.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                TRANSPOSED,
                AS_IS,
                m,
                n,
                k,
                one,
                w,
                input,
                k,
                x,
                input,
                k,
                zero,
                y,
                output,
                m,
                compute,
                DEFAULT_ALGORITHM,
            )
        };
        check(status, "multiply with cuBLAS")
    }
}

impl Drop for Blas<'_> {
    fn drop(&mut self) {
        // SAFETY: made by cublasCreate_v2, and not destroyed before.
        unsafe { (self.destroy)(self.handle) };
    }
}
