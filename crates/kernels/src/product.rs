//! The innermost loop of every matrix product: a few rows of A against one panel of B ([`super::panel`]).
//!
//! An element of C is one chain of sums over the inner dimension in order, whatever rows are computed beside it, so
//! results do not depend on how rows are gathered. Limit: FLOPs; a strip of 14 rows does 28 vector operations per 2
//! vector loads and 14 broadcasts.
//!
//! Every product has a plain version ([`plain_rows`]), which runs without AVX-512 and which tests compare with.

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::isa::{Isa, Level};
use super::panel::{Extent, Operand, PANEL, RawProduct, Sums};
use crate::simd::multiply_add;

/// Products of one number format.
#[allow(unsafe_code, reason = "kernels of raw pointers; `multiply` checks every bound before it calls them")]
trait Format {
    type Lane: Copy;
    type Sum: Copy + Default;
    /// Whether the first half of a panel can be computed alone.
    const HAS_HALVES: bool;

    fn level(isa: Isa) -> Level;

    /// Adds the products of one lane of A with a row of a panel.
    fn step<const FUSED: bool>(x: Self::Lane, b: &[Self::Lane; PANEL], sums: &mut [Self::Sum; PANEL]);

    /// # Safety
    /// The CPU has AVX-512 with this format's instructions, and the product was checked.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_vectors<const V: usize>(product: RawProduct<Self::Lane, Self::Sum>);

    /// # Safety
    /// The CPU has tiles, `lanes` is a multiple of sixteen, `step` is 1, and the product was checked.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_tiles(product: RawProduct<Self::Lane, Self::Sum>);
}

struct F32;

impl Format for F32 {
    type Lane = f32;
    type Sum = f32;
    const HAS_HALVES: bool = true;

    fn level(isa: Isa) -> Level {
        isa.f32
    }

    #[inline(always)]
    fn step<const FUSED: bool>(x: f32, b: &[f32; PANEL], sums: &mut [f32; PANEL]) {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = multiply_add::<FUSED>(x, *b, *sum);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_vectors<const V: usize>(product: RawProduct<f32, f32>) {
        // SAFETY: by the contract of the trait.
        unsafe { avx512::f32_rows::<V>(product) };
    }

    /// There are no tiles of f32; never called, since no instruction set has this level for f32.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_tiles(product: RawProduct<f32, f32>) {
        // SAFETY: whoever has tiles has AVX-512.
        unsafe { avx512::f32_rows::<2>(product) };
    }
}

struct Bf16;

/// The two f32 whose upper halves a lane holds.
#[inline(always)]
fn halves(lane: u32) -> (f32, f32) {
    (f32::from_bits(lane << 16), f32::from_bits(lane & 0xffff_0000))
}

impl Format for Bf16 {
    type Lane = u32;
    type Sum = f32;
    const HAS_HALVES: bool = false;

    fn level(isa: Isa) -> Level {
        isa.bf16
    }

    #[inline(always)]
    fn step<const FUSED: bool>(x: u32, b: &[u32; PANEL], sums: &mut [f32; PANEL]) {
        let (low, high) = halves(x);
        for (sum, b) in sums.iter_mut().zip(b) {
            let (b_low, b_high) = halves(*b);
            *sum = multiply_add::<FUSED>(low, b_low, multiply_add::<FUSED>(high, b_high, *sum));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_vectors<const V: usize>(product: RawProduct<u32, f32>) {
        // SAFETY: by the contract of the trait.
        unsafe { avx512::bf16_rows::<V>(product) };
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_tiles(product: RawProduct<u32, f32>) {
        // SAFETY: by the contract of the trait.
        unsafe { amx::rows::<f32, false>(product) };
    }
}

struct Int8;

impl Format for Int8 {
    type Lane = u32;
    type Sum = i32;
    const HAS_HALVES: bool = false;

    fn level(isa: Isa) -> Level {
        isa.int8
    }

    #[inline(always)]
    fn step<const FUSED: bool>(x: u32, b: &[u32; PANEL], sums: &mut [i32; PANEL]) {
        let x = x.to_le_bytes().map(i32::from);
        for (sum, b) in sums.iter_mut().zip(b) {
            let b = b.to_le_bytes().map(|byte| i32::from(byte as i8));
            *sum += x[0] * b[0] + x[1] * b[1] + x[2] * b[2] + x[3] * b[3];
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_vectors<const V: usize>(product: RawProduct<u32, i32>) {
        // SAFETY: by the contract of the trait.
        unsafe { avx512::int8_rows::<V>(product) };
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "by the contract of the trait")]
    unsafe fn on_tiles(product: RawProduct<u32, i32>) {
        // SAFETY: by the contract of the trait.
        unsafe { amx::rows::<i32, true>(product) };
    }
}

/// `c = a·b` or `c += a·b` in f32. Of sixteen or fewer wanted columns the first sixteen are written, else all of the
/// panel.
pub(crate) fn multiply_f32(isa: Isa, extent: Extent, a: Operand<f32>, b: &[f32], c: Sums<f32>) {
    multiply::<F32>(isa, extent, a, b, c);
}

/// As [`multiply_f32`], lanes being pairs of bf16 and sums f32; always the whole panel.
pub(crate) fn multiply_bf16(isa: Isa, extent: Extent, a: Operand<u32>, b: &[u32], c: Sums<f32>) {
    multiply::<Bf16>(isa, extent, a, b, c);
}

/// As [`multiply_bf16`], lanes being four integers (A unsigned, B signed) and sums i32.
pub(crate) fn multiply_int8(isa: Isa, extent: Extent, a: Operand<u32>, b: &[u32], c: Sums<i32>) {
    multiply::<Int8>(isa, extent, a, b, c);
}

#[allow(unsafe_code, reason = "calls kernels of raw pointers, behind checks of every bound")]
#[inline(always)]
fn multiply<F: Format>(isa: Isa, extent: Extent, a: Operand<F::Lane>, b: &[F::Lane], c: Sums<F::Sum>) {
    let Extent { rows, lanes, columns } = extent;
    if rows == 0 || lanes == 0 {
        return;
    }
    let width = if F::HAS_HALVES && columns <= PANEL / 2 { PANEL / 2 } else { PANEL };
    assert!((rows - 1) * a.row + (lanes - 1) * a.step < a.data.len());
    assert!(c.row >= width && (rows - 1) * c.row + width <= c.data.len());
    let b = &b[..lanes * PANEL];
    #[cfg(target_arch = "x86_64")]
    let raw = RawProduct {
        rows,
        lanes,
        a: a.data.as_ptr(),
        row: a.row,
        step: a.step,
        b: b.as_ptr(),
        c: c.data.as_mut_ptr(),
        c_row: c.row,
        adds: c.adds,
    };
    match F::level(isa) {
        // SAFETY: the checks above cover every element read and written; tiles of sixteen lanes read no further than
        // `lanes`, a multiple of sixteen; the level proves the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Amx if lanes.is_multiple_of(16) && a.step == 1 => unsafe { F::on_tiles(raw) },
        // SAFETY: the checks above cover every element read and written; the level proves the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx if width < PANEL => unsafe { F::on_vectors::<1>(raw) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe { F::on_vectors::<2>(raw) },
        // SAFETY: the level proves the instructions; the body itself is checked code.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { rows_avx2::<F>(rows, width, a, b, c) },
        _ => plain_rows::<F, false>(rows, width, a, b, c),
    }
}

/// The product without intrinsics, written so that a compiler can use vectors.
#[inline(always)]
fn plain_rows<F: Format, const FUSED: bool>(
    rows: usize,
    width: usize,
    a: Operand<F::Lane>,
    b: &[F::Lane],
    c: Sums<F::Sum>,
) {
    let (panel, _) = b.as_chunks::<PANEL>();
    for i in 0..rows {
        let out = &mut c.data[i * c.row..][..width];
        let mut sums = [F::Sum::default(); PANEL];
        if c.adds {
            sums[..width].copy_from_slice(out);
        }
        for (p, b) in panel.iter().enumerate() {
            F::step::<FUSED>(a.data[i * a.row + p * a.step], b, &mut sums);
        }
        out.copy_from_slice(&sums[..width]);
    }
}

/// # Safety
/// The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "compiled for features that the caller has detected")]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_avx2<F: Format>(rows: usize, width: usize, a: Operand<F::Lane>, b: &[F::Lane], c: Sums<F::Sum>) {
    plain_rows::<F, true>(rows, width, a, b, c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use rand::{Rng, SeedableRng};

    fn lanes_of(dtype: Dtype, n: usize, rng: &mut impl Rng) -> Vec<u32> {
        (0..n)
            .map(|_| match dtype {
                Dtype::F32 => rng.random_range(-1f32..1.0).to_bits(),
                Dtype::Bf16 => {
                    let mut half = || rng.random_range(-1f32..1.0).to_bits() >> 16;
                    half() << 16 | half()
                }
                Dtype::Int8 => rng.random(),
            })
            .collect()
    }

    #[test]
    fn every_instruction_set_gives_what_plain_code_gives() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for (rows, lanes) in [(1, 16), (13, 32), (14, 48), (15, 16), (33, 32), (64, 192)] {
            let (row, extent) = (lanes + 16, Extent { rows, lanes, columns: PANEL });
            let [a, b] = [rows * row, lanes * PANEL].map(|n| lanes_of(Dtype::Int8, n, &mut rng));
            let a = Operand::by_rows(&a, row);
            let mut c = [vec![1; rows * PANEL], vec![2; rows * PANEL]];
            multiply_int8(Isa::best(), extent, a, &b, Sums::new(&mut c[0], PANEL));
            multiply_int8(Isa::PLAIN, extent, a, &b, Sums::new(&mut c[1], PANEL));
            assert_eq!(c[0], c[1]);

            let [a, b] = [rows * row, lanes * PANEL].map(|n| lanes_of(Dtype::Bf16, n, &mut rng));
            let a = Operand::by_rows(&a, row);
            let mut c = [vec![0.5; rows * 40], vec![0.5; rows * 40]];
            for (c, isa) in c.iter_mut().zip([Isa::best(), Isa::PLAIN]) {
                multiply_bf16(isa, extent, a, &b, Sums::added(c, 40));
            }
            let worst = c[0].iter().zip(&c[1]).map(|(x, y): (&f32, &f32)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst}");
        }
    }

    #[test]
    fn strided_f32_products_are_the_sums_they_stand_for() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        let (rows, inner) = (31, 45);
        let a: Vec<f32> = (0..rows * inner).map(|_| rng.random_range(-1.0..1.0)).collect();
        let b: Vec<f32> = (0..inner * PANEL).map(|_| rng.random_range(-1.0..1.0)).collect();
        // By rows, and by columns: the same numbers transposed.
        for a in [Operand::by_rows(&a, inner), Operand::by_columns(&a, rows)] {
            for (isa, columns) in [Isa::best(), Isa::PLAIN].into_iter().flat_map(|isa| [PANEL, 16, 5].map(|c| (isa, c)))
            {
                let mut c = vec![3f32; rows * PANEL];
                multiply_f32(isa, Extent { rows, lanes: inner, columns }, a, &b, Sums::added(&mut c, PANEL));
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let term = |p: usize| f64::from(a.data[i * a.row + p * a.step]) * f64::from(b[p * PANEL + j]);
                    let exact = (0..inner).map(term).sum::<f64>() + 3.0;
                    assert!((f64::from(c[i * PANEL + j]) - exact).abs() < 1e-5);
                }
            }
        }
    }
}
