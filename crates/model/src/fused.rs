//! Functions of tensors whose gradients we write ourselves: candle would hold every step of them in memory and pass over each
//! several times on the way back. On a CUDA device they are kernels, on the CPU plain loops (for tests).
//!
//! What such a function gives is computed first, aside; [`crate::custom_ops`] then tells candle what it depends on and how to go back.
//! All of it is f32, but for linear layers, which take bf16 too.
//!
//! Depends on the kernels and candle. Knows nothing of layers or names of weights.

use std::collections::HashMap;
use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage, Layout, Storage, op::BackpropOp};
use candle_core::{DType, Device, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use cellql_kernels::device::{Cuda, CudaError, ROWS, Segments, keep_memory};
use cellql_kernels::device::{Heads, plain, runs};

use crate::Config;
use crate::custom_ops::{known1, known3};

/// Rows that a thread of a kernel goes through at once.
#[cfg(feature = "cuda")]
const LONG: usize = 1024;
/// Rows of a list that are summed at once.
const LIST: usize = 256;

/// Where the rows of cells begin, here and on the device.
#[derive(Debug, Clone)]
pub(crate) struct Cells {
    starts: Vec<u32>,
    #[cfg(feature = "cuda")]
    places: Option<Places>,
}

#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
struct Places {
    starts: Tensor,
    runs: Tensor,
    long: Tensor,
    /// Long runs of each cell, as lists of them.
    lists: Lists,
}

impl Cells {
    /// `starts` is one longer than the cells.
    pub(crate) fn new(starts: Vec<u32>, device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let places = match device.is_cuda() {
            false => None,
            true => {
                let long = runs(&starts, LONG);
                let cell_of: Vec<u32> = long.chunks_exact(3).map(|run| run[0]).collect();
                Some(Places {
                    starts: Tensor::new(starts.as_slice(), device)?,
                    runs: Tensor::new(runs(&starts, ROWS), device)?,
                    lists: Lists::of(&cell_of, starts.len() - 1),
                    long: Tensor::new(long, device)?,
                })
            }
        };
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            starts,
            #[cfg(feature = "cuda")]
            places,
        })
    }

    /// Rows of each cell.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|s| s[0] as usize..s[1] as usize)
    }

    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Refuses rows that are not those of these cells, or not so wide: kernels read what they are told to.
    fn look(&self, x: &Tensor, width: usize) -> Result<()> {
        let (first, last, is_rising) = (self.starts.first(), self.starts.last(), self.starts.is_sorted());
        if x.dims() != [last.map_or(0, |last| *last as usize), width] || first != Some(&0) || !is_rising {
            candle_core::bail!("{:?} are not the rows of {} cells, {width} numbers each", x.shape(), self.count());
        }
        Ok(())
    }
}

/// Lists of rows, end to end.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Lists {
    /// For each of `count` numbers the places in `of` where it stands.
    pub(crate) fn of(of: &[u32], count: usize) -> Self {
        let mut starts = vec![0u32; count + 1];
        of.iter().for_each(|at| starts[*at as usize + 1] += 1);
        (0..count).for_each(|i| starts[i + 1] += starts[i]);
        let (mut next, mut rows) = (starts.clone(), vec![0; of.len()]);
        for (row, at) in of.iter().enumerate() {
            let place = &mut next[*at as usize];
            rows[*place as usize] = row as u32;
            *place += 1;
        }
        Self { starts, rows }
    }

    fn is_long(&self) -> bool {
        self.starts.windows(2).any(|s| (s[1] - s[0]) as usize > LIST)
    }

    /// The same rows in shorter lists, and the lists that these were.
    fn cut(&self) -> (Self, Self) {
        let pieces = runs(&self.starts, LIST);
        let list_of: Vec<u32> = pieces.chunks_exact(3).map(|piece| piece[0]).collect();
        let starts = std::iter::once(0).chain(pieces.chunks_exact(3).map(|piece| piece[2])).collect();
        (Self { starts, rows: self.rows.clone() }, Self::of(&list_of, self.starts.len() - 1))
    }
}

/// The functions, for one device and the heads of one model.
#[derive(Debug, Clone)]
pub struct Fused {
    encoder: Heads,
    decoder: Heads,
    #[cfg(feature = "cuda")]
    cuda: Option<OnCuda>,
}

#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
struct OnCuda {
    device: CudaDevice,
    encoder: Cuda,
    decoder: Cuda,
}

/// Numbers of a head at most: their tiles stand in a block's shared memory.
#[cfg(feature = "cuda")]
const WIDEST: usize = 128;

impl Fused {
    /// For the heads of a model, and its random features.
    ///
    /// A CUDA device must have a stream of its own ([`Device::new_cuda_with_stream`]), which orders what several threads ask of it.
    ///
    /// # Errors
    /// The device's compiler says no, the tensors have no features, or a head is too wide.
    pub fn new(device: &Device, config: &Config, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let Some((_, matrix)) = tensors.iter().find(|(name, _)| name.ends_with("projection_matrix")) else {
            candle_core::bail!("the model has no random features");
        };
        let features = matrix.dim(0)?;
        let (encoder, decoder) = (&config.encoder, &config.decoder);
        let encoder = Heads { heads: encoder.heads, dim: encoder.hidden_dim / encoder.heads };
        let decoder = Heads { heads: decoder.heads, dim: decoder.dim_head };
        #[cfg(feature = "cuda")]
        let cuda = match device {
            Device::Cuda(cuda) => {
                if encoder.dim.max(decoder.dim) > WIDEST {
                    candle_core::bail!("a head has more than {WIDEST} numbers, the most that a device's kernels take");
                }
                let compile = |heads, features| Cuda::compile(cuda.cuda_stream(), heads, features).map_err(failed);
                Some(OnCuda {
                    device: cuda.clone(),
                    encoder: compile(encoder, 1)?,
                    decoder: compile(decoder, features)?,
                })
            }
            _ => None,
        };
        #[cfg(not(feature = "cuda"))]
        let _ = (device, features);
        Ok(Self {
            encoder,
            decoder,
            #[cfg(feature = "cuda")]
            cuda,
        })
    }

    /// Keeps the device's memory that is free, for the next step. Gives how many bytes are free now, where there is a device.
    ///
    /// # Errors
    /// The device says no.
    pub fn keep_memory(&self) -> Result<Option<usize>> {
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, .. }) = &self.cuda {
            return keep_memory(&device.cuda_stream()).map(Some).map_err(failed);
        }
        Ok(None)
    }

    /// Attention of cells end to end: `[tokens, 3·dim]` to `[tokens, dim]`.
    pub(crate) fn attention(&self, qkv: &Tensor, cells: &Cells) -> Result<Tensor> {
        cells.look(qkv, 3 * self.encoder.width())?;
        let (this, cells, from) = (self.clone(), cells.clone(), qkv.detach().contiguous()?);
        let (tokens, heads) = (qkv.dim(0)?, self.encoder);
        let given = this.attend(&from, &cells)?;
        let out = given.narrow(2, 0, heads.dim)?.contiguous()?.reshape((tokens, heads.width()))?;
        let back = move |g: &Tensor| this.attend_back(&from, &given, g, &cells);
        known1(qkv, out, back)
    }

    /// Attention by random features `w` `[features, dim_head]`: of queries `[queries, width]` to keys and values `[keys, width]` of their own cell,
    /// every cell with as many keys. Gives `[queries, width]`.
    pub(crate) fn favor(&self, [q, k, v]: [&Tensor; 3], w: &Tensor, queries: &Cells, keys: &Cells) -> Result<Tensor> {
        let Heads { heads, dim } = self.decoder;
        queries.look(q, heads * dim)?;
        [k, v].into_iter().try_for_each(|x| keys.look(x, heads * dim))?;
        if w.dim(1)? != dim || keys.count() == 0 || k.dim(0)? % keys.count() != 0 {
            candle_core::bail!("features {:?} and keys {:?} do not fit heads of {dim}", w.shape(), k.shape());
        }
        let (this, w, queries, keys) = (self.clone(), w.clone(), queries.clone(), keys.clone());
        let by_head = |x: &Tensor| x.detach().contiguous()?.reshape((x.dim(0)?, heads, dim));
        let (of_q, of_k, of_v) = (by_head(q)?, by_head(k)?, by_head(v)?);
        let most_q = this.largest(&of_q, &w)?.unsqueeze(2)?;
        let most_k = this.largest(&of_k, &w)?;
        let most_k = most_k
            .reshape((keys.count(), ()))?
            .max_keepdim(1)?
            .broadcast_as((keys.count(), k.dim(0)? / keys.count() * heads))?;
        let most_k = most_k.contiguous()?.reshape((k.dim(0)?, heads, 1))?;
        let (q_most, k_most) = (Tensor::cat(&[&of_q, &most_q], 2)?, Tensor::cat(&[&of_k, &most_k], 2)?);
        let v_one = Tensor::cat(&[&of_v, &most_k.ones_like()?], 2)?;
        let sums = this.scatter(&k_most, &v_one, &w, &keys)?;
        let gathered = this.gather(&q_most, &w, &sums, &queries)?;
        let totals = gathered.narrow(2, dim, 1)?.contiguous()?;
        let mixed = gathered.narrow(2, 0, dim)?.broadcast_div(&totals)?;
        let out = mixed.reshape((q.dim(0)?, heads * dim))?;
        let back = move |g: &Tensor| {
            let g = g.reshape(mixed.shape())?;
            let of_totals = (&g * &mixed)?.sum_keepdim(2)?.neg()?;
            let r = Tensor::cat(&[g, of_totals], 2)?.broadcast_div(&totals)?;
            let of_sums = this.scatter(&q_most, &r, &w, &queries)?;
            let of_q = this.slope([&q_most, &r], &w, &sums, &queries)?;
            let of_k = this.slope([&k_most, &v_one], &w, &of_sums, &keys)?;
            let of_v = this.gather(&k_most, &w, &of_sums, &keys)?.narrow(2, 0, dim)?.contiguous()?;
            let flat = |x: Tensor| x.reshape((x.dim(0)?, heads * dim));
            Ok([flat(of_q)?, flat(of_k)?, flat(of_v)?])
        };
        known3([q, k, v], out, back)
    }

    /// Layer norm of rows.
    pub(crate) fn norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if [weight.dims(), bias.dims()] != [&x.dims()[1..]; 2] {
            candle_core::bail!("a norm of {:?} and {:?} over {:?}", weight.shape(), bias.shape(), x.shape());
        }
        let (this, from, scale) = (self.clone(), x.detach().contiguous()?, weight.detach());
        let out = this.normalise(&from, &scale, &bias.detach())?;
        let back = move |g: &Tensor| {
            let both = this.norm_back(&from, &scale, g)?;
            let part = |part: usize| both.narrow(0, part, 1)?.squeeze(0);
            Ok([part(0)?, sum(&part(1)?)?, sum(g)?])
        };
        known3([x, weight, bias], out, back)
    }

    /// `x` `[rows, in]` times `weight` `[out, in]`, plus a bias.
    pub(crate) fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if bias.dims() != &weight.dims()[..1] {
            candle_core::bail!("a bias of {:?} beside weights of {:?}", bias.shape(), weight.shape());
        }
        let (from, by) = (x.detach(), weight.detach());
        let out = self.biased(&from.matmul(&by.t()?)?, &bias.detach())?;
        let back = move |g: &Tensor| Ok([g.matmul(&by)?, g.t()?.matmul(&from)?, sum(g)?]);
        known3([x, weight, bias], out, back)
    }

    /// GELU.
    pub(crate) fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        let (this, from) = (self.clone(), x.detach().contiguous()?);
        let out = from.gelu_erf()?;
        known1(x, out, move |g: &Tensor| this.gelu_back(&from, g))
    }

    /// Rows of `x`, as often as they are named.
    pub(crate) fn rows(&self, x: &Tensor, names: &[u32]) -> Result<Tensor> {
        let from = x.detach().contiguous()?;
        let out = from.index_select(&Tensor::new(names, x.device())?, 0)?;
        let (this, lists) = (self.clone(), Lists::of(names, x.dim(0)?));
        known1(x, out, move |g: &Tensor| this.sum_rows(g, &lists))
    }
}

/// Each kernel on tensors: `plain` where they stand on the CPU.
impl Fused {
    fn largest(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let shape = (x.dim(0)?, self.decoder.heads);
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, w], &[], shape, |n, _| decoder.largest(&n[0], &n[1]));
        }
        on_cpu(plain::largest(&numbers(x)?, &numbers(w)?, self.decoder), shape)
    }

    fn gather(&self, xl: &Tensor, w: &Tensor, t: &Tensor, cells: &Cells) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(OnCuda { device, decoder, .. }), Some(places)) = (&self.cuda, &cells.places) {
            return on_cuda(device, &[xl, w, t], &[&places.starts, &places.runs], xl.shape(), |n, p| {
                decoder.gather(&n[0], &n[1], &n[2], Segments { starts: &p[0], runs: &p[1] })
            });
        }
        let [x, w, t] = [&numbers(xl)?, &numbers(w)?, &numbers(t)?];
        on_cpu(plain::gather(x, w, t, &cells.starts, self.decoder), xl.shape())
    }

    fn slope(&self, [xl, r]: [&Tensor; 2], w: &Tensor, t: &Tensor, cells: &Cells) -> Result<Tensor> {
        let shape = (xl.dim(0)?, self.decoder.heads, self.decoder.dim);
        #[cfg(feature = "cuda")]
        if let (Some(OnCuda { device, decoder, .. }), Some(places)) = (&self.cuda, &cells.places) {
            return on_cuda(device, &[xl, r, w, t], &[&places.starts, &places.runs], shape, |n, p| {
                decoder.slope(&n[0], &n[1], &n[2], &n[3], Segments { starts: &p[0], runs: &p[1] })
            });
        }
        let [x, r, w, t] = [&numbers(xl)?, &numbers(r)?, &numbers(w)?, &numbers(t)?];
        on_cpu(plain::slope(x, r, w, t, &cells.starts, self.decoder), shape)
    }

    fn scatter(&self, xl: &Tensor, r: &Tensor, w: &Tensor, cells: &Cells) -> Result<Tensor> {
        let Heads { heads, dim } = self.decoder;
        let shape = (cells.count(), heads, w.dim(0)?, dim + 1);
        #[cfg(feature = "cuda")]
        if let (Some(OnCuda { device, decoder, .. }), Some(places)) = (&self.cuda, &cells.places) {
            let of_run = (places.long.elem_count() / 3, heads * w.dim(0)? * (dim + 1));
            let of_runs = on_cuda(device, &[xl, r, w], &[&places.long], of_run, |n, p| {
                decoder.scatter(&n[0], &n[1], &n[2], &p[0])
            })?;
            return self.sum_rows(&of_runs, &places.lists)?.reshape(shape);
        }
        let [x, r, w] = [&numbers(xl)?, &numbers(r)?, &numbers(w)?];
        on_cpu(plain::scatter(x, r, w, &cells.starts, self.decoder), shape)
    }

    fn attend(&self, qkv: &Tensor, cells: &Cells) -> Result<Tensor> {
        let shape = (qkv.dim(0)?, self.encoder.heads, self.encoder.dim + 1);
        #[cfg(feature = "cuda")]
        if let (Some(OnCuda { device, encoder, .. }), Some(places)) = (&self.cuda, &cells.places) {
            return on_cuda(device, &[qkv], &[&places.starts, &places.runs], shape, |n, p| {
                encoder.attend(&n[0], Segments { starts: &p[0], runs: &p[1] })
            });
        }
        on_cpu(plain::attend(&numbers(qkv)?, &cells.starts, self.encoder), shape)
    }

    fn attend_back(&self, qkv: &Tensor, given: &Tensor, g: &Tensor, cells: &Cells) -> Result<Tensor> {
        let g = &g.contiguous()?;
        #[cfg(feature = "cuda")]
        if let (Some(OnCuda { device, encoder, .. }), Some(places)) = (&self.cuda, &cells.places) {
            return on_cuda(device, &[qkv, given, g], &[&places.starts, &places.runs], qkv.shape(), |n, p| {
                encoder.attend_back(&n[0], &n[1], &n[2], Segments { starts: &p[0], runs: &p[1] })
            });
        }
        let [from, given, g] = [&numbers(qkv)?, &numbers(given)?, &numbers(g)?];
        on_cpu(plain::attend_back(from, given, g, &cells.starts, self.encoder), qkv.shape())
    }

    fn normalise(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, weight, bias], &[], x.shape(), |n, _| decoder.normalise(&n[0], &n[1], &n[2]));
        }
        on_cpu(plain::normalise(&numbers(x)?, &numbers(weight)?, &numbers(bias)?), x.shape())
    }

    fn norm_back(&self, x: &Tensor, weight: &Tensor, g: &Tensor) -> Result<Tensor> {
        let (g, shape) = (&g.contiguous()?, (2, x.dim(0)?, x.dim(1)?));
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, weight, g], &[], shape, |n, _| decoder.norm_back(&n[0], &n[1], &n[2]));
        }
        on_cpu(plain::norm_back(&numbers(x)?, &numbers(weight)?, &numbers(g)?), shape)
    }

    fn biased(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if x.dtype() != DType::F32 {
            return x.broadcast_add(bias);
        }
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, bias], &[], x.shape(), |n, _| decoder.biased(&n[0], &n[1]));
        }
        on_cpu(plain::biased(&numbers(x)?, &numbers(bias)?), x.shape())
    }

    fn gelu_back(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let g = &g.contiguous()?;
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, g], &[], x.shape(), |n, _| decoder.gelu_back(&n[0], &n[1]));
        }
        on_cpu(plain::gelu_back(&numbers(x)?, &numbers(g)?), x.shape())
    }

    /// Sums of lists of rows; long ones in pieces, so that no thread goes through all of one.
    fn sum_rows(&self, x: &Tensor, lists: &Lists) -> Result<Tensor> {
        if lists.is_long() {
            let (pieces, of_pieces) = lists.cut();
            return self.sum_rows(&self.sum_rows(x, &pieces)?, &of_pieces);
        }
        let (x, width) = (&x.contiguous()?, x.dim(1)?);
        let shape = (lists.starts.len() - 1, width);
        #[cfg(feature = "cuda")]
        if let Some(OnCuda { device, decoder, .. }) = &self.cuda {
            let place = |places: &[u32]| Tensor::new(places, x.device());
            return on_cuda(device, &[x], &[&place(&lists.starts)?, &place(&lists.rows)?], shape, |n, p| {
                decoder.sum_rows(&n[0], &p[0], &p[1], width)
            });
        }
        on_cpu(plain::sum_rows(&numbers(x)?, &lists.starts, &lists.rows, width), shape)
    }
}

/// Over rows. As a product with ones, since candle's own sum reads each column by itself.
fn sum(x: &Tensor) -> Result<Tensor> {
    Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?.matmul(x)?.squeeze(0)
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn on_cpu(numbers: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(numbers, shape.into(), &Device::Cpu)
}

#[cfg(feature = "cuda")]
fn failed(e: CudaError) -> candle_core::Error {
    candle_core::Error::Msg(e.to_string())
}

/// A kernel over tensors of numbers and of places, all contiguous and on one device.
#[cfg(feature = "cuda")]
fn on_cuda(
    device: &CudaDevice,
    numbers: &[&Tensor],
    places: &[&Tensor],
    shape: impl Into<Shape>,
    run: impl FnOnce(&[CudaView<'_, f32>], &[CudaView<'_, u32>]) -> std::result::Result<CudaSlice<f32>, CudaError>,
) -> Result<Tensor> {
    use candle_core::cuda_backend::CudaDType;
    fn view<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
        let Storage::Cuda(storage) = storage else { candle_core::bail!("a tensor is not on the device") };
        let Some((from, to)) = layout.contiguous_offsets() else { candle_core::bail!("a tensor is not contiguous") };
        Ok(storage.as_cuda_slice::<T>()?.slice(from..to))
    }
    let (numbers, places): (Vec<_>, Vec<_>) = (
        numbers.iter().map(|t| t.storage_and_layout()).collect(),
        places.iter().map(|t| t.storage_and_layout()).collect(),
    );
    let numbers = numbers.iter().map(|(s, l)| view::<f32>(s, l)).collect::<Result<Vec<_>>>()?;
    let places = places.iter().map(|(s, l)| view::<u32>(s, l)).collect::<Result<Vec<_>>>()?;
    let (given, shape) = (run(&numbers, &places).map_err(failed)?, shape.into());
    if given.len() != shape.elem_count() {
        candle_core::bail!("a kernel gave {} numbers for {shape:?}", given.len());
    }
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(given, device.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}
