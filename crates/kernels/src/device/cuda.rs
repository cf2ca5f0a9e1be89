//! `learning.cu` on a CUDA device: compiled when a model comes to the device, launched by functions that look at
//! lengths first.
#![allow(unsafe_code, reason = "launches of kernels; the lengths of their arguments are checked before each")]

use std::sync::Arc;

use cudarc::driver::result::{self, device, mem_pool};
use cudarc::driver::{CudaModule, CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

use super::{Heads, ROWS, WARP, compile_options};

/// Most blocks of a kernel whose threads go through all numbers by strides.
const BLOCKS: usize = 4096;

/// A kernel that could not be compiled or run.
#[derive(Debug)]
pub enum CudaError {
    /// The driver refused or failed.
    Driver(DriverError),
    /// `learning.cu` could not be compiled for the device.
    Compiler(Box<CompileError>),
}

impl std::fmt::Display for CudaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CudaError::Driver(e) => write!(f, "CUDA driver: {e}"),
            CudaError::Compiler(e) => write!(f, "compiling kernels: {e}"),
        }
    }
}

impl std::error::Error for CudaError {}

impl From<DriverError> for CudaError {
    fn from(e: DriverError) -> Self {
        CudaError::Driver(e)
    }
}

impl From<CompileError> for CudaError {
    fn from(e: CompileError) -> Self {
        CudaError::Compiler(Box::new(e))
    }
}

type Result<T> = std::result::Result<T, CudaError>;
/// f32 on the device.
pub type DeviceFloats<'a> = &'a CudaView<'a, f32>;
/// Row numbers on the device.
pub type DeviceIndices<'a> = &'a CudaView<'a, u32>;

/// Where cells begin among rows, on the device.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    /// First rows of cells, one more than there are cells.
    pub starts: DeviceIndices<'a>,
    /// Their [`super::runs`] of at most [`ROWS`] rows.
    pub runs: DeviceIndices<'a>,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
enum Argument<'a> {
    Floats(DeviceFloats<'a>),
    Indices(DeviceIndices<'a>),
    Count(u32),
    Long(u64),
    /// The output.
    Filled,
}

/// Kernels on one stream, for heads of one size.
#[derive(Debug, Clone)]
pub struct Cuda {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    heads: Heads,
    features: usize,
    threads: usize,
}

/// Widest head of which a thread's registers hold two rows with their sums.
const TWO_FIT: usize = 16;

impl Cuda {
    /// Compiled for heads of a size and a number of random features (1 where none are used).
    ///
    /// # Errors
    /// The device or its compiler say no.
    pub fn compile(stream: Arc<CudaStream>, heads: Heads, features: usize) -> Result<Self> {
        let attribute = |which| stream.context().attribute(which);
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let (dim, target) = (heads.dim, format!("--gpu-architecture=compute_{major}{minor}"));
        let rows = if dim <= TWO_FIT { 2 } else { 1 };
        let options = std::iter::once(target).chain(compile_options(dim, features, rows)).collect();
        let options = CompileOptions { options, ..Default::default() };
        let module = stream.context().load_module(compile_ptx_with_opts(include_str!("learning.cu"), options)?)?;
        Ok(Self { stream, module, heads, features, threads: ROWS / rows })
    }

    /// Launches a kernel. Callers have looked at the lengths of what it is given.
    fn launch(
        &self,
        kernel: &str,
        grid: [usize; 3],
        given: &[Argument<'_>],
        filled: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let function = self.module.load_function(kernel)?;
        let mut filled = Some(filled);
        let mut launch = self.stream.launch_builder(&function);
        for one in given {
            match one {
                Argument::Floats(view) => launch.arg(*view),
                Argument::Indices(view) => launch.arg(*view),
                Argument::Count(n) => launch.arg(n),
                Argument::Long(n) => launch.arg(n),
                Argument::Filled => {
                    launch.arg(filled.take().ok_or(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE))?)
                }
            };
        }
        let [x, y, z] = grid.map(|n| n as u32);
        let shape = LaunchConfig { grid_dim: (x, y, z), block_dim: (self.threads as u32, 1, 1), shared_mem_bytes: 0 };
        // Safety: these are the arguments of the kernel of this name; callers looked at their lengths, and theirs at
        // what places say.
        unsafe { launch.launch(shape)? };
        Ok(())
    }

    /// Numbers that nobody has written yet.
    fn room(&self, count: usize) -> Result<CudaSlice<f32>> {
        // Safety: every kernel writes all of what it fills before anything later on this stream reads it.
        Ok(unsafe { self.stream.alloc::<f32>(count)? })
    }

    fn fill(&self, kernel: &str, grid: [usize; 3], count: usize, given: &[Argument<'_>]) -> Result<CudaSlice<f32>> {
        let mut filled = self.room(count)?;
        self.launch(kernel, grid, given, &mut filled)?;
        Ok(filled)
    }

    fn heads(&self) -> Argument<'static> {
        Argument::Count(self.heads.heads as u32)
    }

    /// A block for each run and head.
    fn by_runs(&self, segments: Segments<'_>) -> [usize; 3] {
        [segments.runs.len() / 3, self.heads.heads, 1]
    }

    fn check_sums(&self, w: DeviceFloats<'_>, t: DeviceFloats<'_>, segments: Segments<'_>) {
        assert_eq!(w.len(), self.features * self.heads.dim, "features");
        assert_eq!(t.len(), (segments.starts.len() - 1) * self.features * self.heads.wider(), "sums");
    }

    /// As [`plain::largest`](super::plain::largest).
    ///
    /// # Errors
    /// As all here: the device has no room, or an earlier kernel failed.
    pub fn largest(&self, x: DeviceFloats<'_>, w: DeviceFloats<'_>) -> Result<CudaSlice<f32>> {
        assert_eq!(w.len(), self.features * self.heads.dim, "features");
        let (rows, heads) = (x.len() / self.heads.width(), self.heads.heads);
        let given =
            [Argument::Floats(x), Argument::Floats(w), Argument::Filled, Argument::Count(rows as u32), self.heads()];
        self.fill("largest", [rows.div_ceil(ROWS), heads, 1], rows * heads, &given)
    }

    /// As [`plain::gather`](super::plain::gather).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn gather(
        &self,
        xl: DeviceFloats<'_>,
        w: DeviceFloats<'_>,
        t: DeviceFloats<'_>,
        segments: Segments<'_>,
    ) -> Result<CudaSlice<f32>> {
        self.check_sums(w, t, segments);
        let [xl_of, w, t] = [xl, w, t].map(Argument::Floats);
        let given = [xl_of, w, t, Argument::Indices(segments.runs), Argument::Filled, self.heads()];
        self.fill("gather", self.by_runs(segments), xl.len(), &given)
    }

    /// As [`plain::derivative`](super::plain::derivative).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn derivative(
        &self,
        xl: DeviceFloats<'_>,
        r: DeviceFloats<'_>,
        w: DeviceFloats<'_>,
        t: DeviceFloats<'_>,
        segments: Segments<'_>,
    ) -> Result<CudaSlice<f32>> {
        self.check_sums(w, t, segments);
        assert_eq!(xl.len(), r.len(), "a weight for each row");
        let count = xl.len() / self.heads.wider() * self.heads.width();
        let [xl, r, w, t] = [xl, r, w, t].map(Argument::Floats);
        let given = [xl, r, w, t, Argument::Indices(segments.runs), Argument::Filled, self.heads()];
        self.fill("derivative", self.by_runs(segments), count, &given)
    }

    /// As [`plain::scatter`](super::plain::scatter), but for runs of rows, not yet added up over those of a cell:
    /// `[runs, heads, features, dim + 1]`. Runs may be of any length.
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn scatter(
        &self,
        xl: DeviceFloats<'_>,
        r: DeviceFloats<'_>,
        w: DeviceFloats<'_>,
        runs: DeviceIndices<'_>,
    ) -> Result<CudaSlice<f32>> {
        assert_eq!(
            (w.len(), r.len()),
            (self.features * self.heads.dim, xl.len()),
            "features, and a weight for each row"
        );
        let (count, heads) = (runs.len() / 3, self.heads);
        let [xl, r, w] = [xl, r, w].map(Argument::Floats);
        let given = [xl, r, w, Argument::Indices(runs), Argument::Filled, self.heads()];
        let grid = [count, heads.heads, self.features.div_ceil(ROWS)];
        self.fill("scatter", grid, count * self.features * heads.wider(), &given)
    }

    /// As [`plain::attend`](super::plain::attend).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn attend(&self, qkv: DeviceFloats<'_>, segments: Segments<'_>) -> Result<CudaSlice<f32>> {
        let count = qkv.len() / (3 * self.heads.width()) * self.heads.wider();
        let [starts, runs] = [segments.starts, segments.runs].map(Argument::Indices);
        let given = [Argument::Floats(qkv), starts, runs, Argument::Filled, self.heads()];
        self.fill("attend", self.by_runs(segments), count, &given)
    }

    /// As [`plain::attend_backward`](super::plain::attend_backward).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn attend_backward(
        &self,
        qkv: DeviceFloats<'_>,
        given: DeviceFloats<'_>,
        g: DeviceFloats<'_>,
        segments: Segments<'_>,
    ) -> Result<CudaSlice<f32>> {
        let tokens = qkv.len() / (3 * self.heads.width());
        assert_eq!(
            (given.len(), g.len()),
            (tokens * self.heads.wider(), tokens * self.heads.width()),
            "of these tokens"
        );
        let mut filled = self.room(qkv.len())?;
        let [qkv, given, g] = [qkv, given, g].map(Argument::Floats);
        let [starts, runs] = [segments.starts, segments.runs].map(Argument::Indices);
        let given = [qkv, given, g, starts, runs, Argument::Filled, self.heads()];
        for kernel in ["queries_backward", "keys_backward"] {
            self.launch(kernel, self.by_runs(segments), &given, &mut filled)?;
        }
        Ok(filled)
    }

    /// As [`plain::normalise`](super::plain::normalise).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn normalise(
        &self,
        x: DeviceFloats<'_>,
        weight: DeviceFloats<'_>,
        bias: DeviceFloats<'_>,
    ) -> Result<CudaSlice<f32>> {
        let width = weight.len();
        assert_eq!(bias.len(), width, "a shift for each scale");
        let (count, rows) = (x.len(), x.len() / width);
        let [x, weight, bias] = [x, weight, bias].map(Argument::Floats);
        let given = [x, weight, bias, Argument::Filled, Argument::Count(width as u32), Argument::Count(rows as u32)];
        self.fill("normalise", self.by_warps(rows), count, &given)
    }

    /// A warp for each row.
    fn by_warps(&self, rows: usize) -> [usize; 3] {
        [rows.div_ceil(self.threads / WARP), 1, 1]
    }

    /// Blocks that go through so many numbers by strides.
    fn by_strides(&self, count: usize) -> [usize; 3] {
        [count.div_ceil(self.threads).min(BLOCKS), 1, 1]
    }

    /// As [`plain::norm_backward`](super::plain::norm_backward).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn norm_backward(
        &self,
        x: DeviceFloats<'_>,
        weight: DeviceFloats<'_>,
        g: DeviceFloats<'_>,
    ) -> Result<CudaSlice<f32>> {
        let (width, count) = (weight.len(), x.len());
        let rows = count / width;
        assert_eq!(g.len(), count, "a gradient for each number");
        let [x, weight, g] = [x, weight, g].map(Argument::Floats);
        let given = [x, weight, g, Argument::Filled, Argument::Count(width as u32), Argument::Count(rows as u32)];
        self.fill("norm_backward", self.by_warps(rows), 2 * count, &given)
    }

    /// As [`plain::biased`](super::plain::biased).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn biased(&self, x: DeviceFloats<'_>, bias: DeviceFloats<'_>) -> Result<CudaSlice<f32>> {
        let (count, width) = (x.len(), bias.len());
        let counts = [Argument::Count(width as u32), Argument::Long(count as u64)];
        let given = [Argument::Floats(x), Argument::Floats(bias), Argument::Filled, counts[0], counts[1]];
        self.fill("biased", self.by_strides(count), count, &given)
    }

    /// As [`plain::gelu_backward`](super::plain::gelu_backward).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn gelu_backward(&self, x: DeviceFloats<'_>, g: DeviceFloats<'_>) -> Result<CudaSlice<f32>> {
        let count = x.len();
        assert_eq!(g.len(), count, "a gradient for each number");
        let given = [Argument::Floats(x), Argument::Floats(g), Argument::Filled, Argument::Long(count as u64)];
        self.fill("gelu_backward", self.by_strides(count), count, &given)
    }

    /// As [`plain::sum_rows`](super::plain::sum_rows).
    ///
    /// # Errors
    /// As [`Cuda::largest`].
    pub fn sum_rows(
        &self,
        x: DeviceFloats<'_>,
        starts: DeviceIndices<'_>,
        sources: DeviceIndices<'_>,
        width: usize,
    ) -> Result<CudaSlice<f32>> {
        let count = (starts.len() - 1) * width;
        let places = [Argument::Indices(starts), Argument::Indices(sources)];
        let given = [Argument::Floats(x), places[0], places[1], Argument::Filled];
        let given = [&given[..], &[Argument::Count(width as u32), Argument::Long(count as u64)]].concat();
        self.fill("sum_rows", self.by_strides(count), count, &given)
    }
}

/// Lets the device's pool keep memory that is free, so that a step need not ask the system for it again. Gives the
/// bytes that are free now.
///
/// # Errors
/// The device has no such pool.
pub fn keep_memory(stream: &CudaStream) -> Result<usize> {
    let mut all = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    stream.context().bind_to_thread()?;
    // Safety: the pool is the device's own and lives as long as it; the attribute is a number of 64 bits, read during
    // the call.
    unsafe {
        let pool = device::get_default_mem_pool(stream.context().cu_device())?;
        mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut all).cast())?;
    }
    Ok(result::mem_get_info()?.0)
}
