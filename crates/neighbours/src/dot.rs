//! Integer dot products of 16-bit weights with 8-bit codes, exact in 32 bits: the only arithmetic of a graph search.
//!
//! They are compiled for AVX-512, for AVX2 and for any CPU, and chosen at run time. The results are equal bit for bit,
//! so a graph does not depend on the machine that built it. Memory limits the speed: each row of codes is read once
//! from a random place, so later rows are prefetched while a row is computed.

use std::sync::OnceLock;

/// Codes in a block: those of one AVX-512 register. A row of codes has whole blocks.
pub(crate) const BLOCK: usize = 64;
/// Bytes of codes that are prefetched while a row is computed.
const AHEAD: usize = 2048;

/// An instruction set that this CPU has. Values other than the scalar one come only from detection, so a value is a
/// proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest instruction set of this CPU.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().last().copied().unwrap_or(Isa(Level::Scalar)))
    }

    /// All instruction sets of this CPU, the fastest last.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa(Level::Avx2));
            }
            if all.len() == 2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Isa(Level::Avx512));
            }
        }
        all
    }
}

/// 16-bit weights `[stride]` of the dimensions. The sum of their magnitudes is at most 2³¹ / 255, so no sum of products
/// with codes overflows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weights {
    wide: Vec<i16>,
    /// The weights as two bytes, `wide = 256 · high + low`, by block: `[high, low]`.
    split: Vec<[[i8; BLOCK]; 2]>,
}

impl Weights {
    /// Sets the weights, which are within ±32,512, to the nearest integers, and pads them with zeros to `stride`.
    pub(crate) fn set(&mut self, stride: usize, weights: impl Iterator<Item = f32>) {
        self.wide.clear();
        self.wide.extend(weights.map(|w| w.round_ties_even() as i16));
        self.wide.resize(stride, 0);
        self.split.resize(stride / BLOCK, [[0; BLOCK]; 2]);
        for ([high, low], wide) in self.split.iter_mut().zip(self.wide.as_chunks::<BLOCK>().0) {
            for i in 0..BLOCK {
                high[i] = ((wide[i] + 128) >> 8) as i8;
                low[i] = wide[i] as i8;
            }
        }
    }
}

/// Rows of codes, `[n, stride]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) stride: usize,
}

impl<'a> Table<'a> {
    #[inline(always)]
    fn row(&self, id: u32) -> &'a [[u8; BLOCK]] {
        self.codes[id as usize * self.stride..][..self.stride].as_chunks::<BLOCK>().0
    }
}

/// Prefetches items that are read soon into the cache.
#[inline(always)]
#[allow(unsafe_code, reason = "a hint to the memory")]
pub(crate) fn prefetch<T>(items: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(items)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(items.as_ptr().cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = items;
}

/// Products of the weights with the rows of `ids`, in their order.
pub(crate) fn products(isa: Isa, weights: &Weights, table: Table<'_>, ids: &[u32], out: &mut Vec<i32>) {
    out.clear();
    match isa.0 {
        Level::Scalar => for_each_row(table, ids, out, |row| scalar(&weights.wide, row)),
        // SAFETY: the level proves the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "calls functions compiled for features that were detected")]
        Level::Avx2 => unsafe { x86::products_avx2(weights, table, ids, out) },
        // SAFETY: the level proves the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "calls functions compiled for features that were detected")]
        Level::Avx512 => unsafe { x86::products_avx512(weights, table, ids, out) },
    }
}

/// Computes the product of each row and prefetches later rows meanwhile.
#[inline(always)]
fn for_each_row(table: Table<'_>, ids: &[u32], out: &mut Vec<i32>, product: impl Fn(&[[u8; BLOCK]]) -> i32) {
    let ahead = (AHEAD / table.stride).max(1);
    for id in ids.iter().take(ahead) {
        prefetch(table.row(*id));
    }
    for (i, id) in ids.iter().enumerate() {
        if let Some(later) = ids.get(i + ahead) {
            prefetch(table.row(*later));
        }
        out.push(product(table.row(*id)));
    }
}

#[inline(always)]
fn scalar(weights: &[i16], row: &[[u8; BLOCK]]) -> i32 {
    weights.iter().zip(row.as_flattened()).map(|(w, c)| i32::from(*w) * i32::from(*c)).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Table, Weights, for_each_row};

    #[target_feature(enable = "avx2")]
    pub(super) fn products_avx2(weights: &Weights, table: Table<'_>, ids: &[u32], out: &mut Vec<i32>) {
        for_each_row(table, ids, out, |row| avx2(&weights.wide, row));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn products_avx512(weights: &Weights, table: Table<'_>, ids: &[u32], out: &mut Vec<i32>) {
        for_each_row(table, ids, out, |row| avx512(&weights.split, row));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code, reason = "loads of vectors")]
    fn avx2(weights: &[i16], row: &[[u8; BLOCK]]) -> i32 {
        let mut sums = [_mm256_setzero_si256(); 4];
        for (w, c) in weights.as_chunks::<BLOCK>().0.iter().zip(row) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: sixteen of the sixty-four elements of each, from 0, 16, 32 or 48.
                let (w, c) = unsafe {
                    (_mm256_loadu_si256(w.as_ptr().add(16 * i).cast()), _mm_loadu_si128(c.as_ptr().add(16 * i).cast()))
                };
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, _mm256_cvtepu8_epi16(c)));
            }
        }
        let sum = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b00_00_11_10>(sum));
        _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<1>(sum)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[allow(unsafe_code, reason = "loads of vectors")]
    fn avx512(weights: &[[[i8; BLOCK]; 2]], row: &[[u8; BLOCK]]) -> i32 {
        let (mut high, mut low) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for ([w_high, w_low], c) in weights.iter().zip(row) {
            // SAFETY: whole arrays of sixty-four bytes.
            let (w_high, w_low, c) = unsafe {
                (
                    _mm512_loadu_si512(w_high.as_ptr().cast()),
                    _mm512_loadu_si512(w_low.as_ptr().cast()),
                    _mm512_loadu_si512(c.as_ptr().cast()),
                )
            };
            high = _mm512_dpbusd_epi32(high, c, w_high);
            low = _mm512_dpbusd_epi32(low, c, w_low);
        }
        _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn integer_products_are_exact_on_every_instruction_set() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for dim in [1usize, 63, 64, 65, 256, 3072] {
            let stride = dim.next_multiple_of(BLOCK);
            let bound = (32_512.0f64).min((i32::MAX / 255) as f64 / dim as f64) as i32;
            let mut weights = Weights::default();
            let wide: Vec<i32> =
                (0..dim).map(|i| if i < 2 { -bound } else { rng.random_range(-bound..=bound) }).collect();
            weights.set(stride, wide.iter().map(|w| *w as f32));
            let mut codes = vec![0u8; 3 * stride];
            for row in codes.chunks_mut(stride) {
                row[..dim].fill_with(|| rng.random());
                row[0] = 255;
            }
            let exact = |id: u32| -> i64 {
                wide.iter().zip(&codes[id as usize * stride..]).map(|(w, c)| i64::from(*w) * i64::from(*c)).sum()
            };
            for isa in Isa::all() {
                let mut out = Vec::new();
                products(isa, &weights, Table { codes: &codes, stride }, &[2, 0, 1, 2], &mut out);
                let out: Vec<i64> = out.into_iter().map(i64::from).collect();
                assert_eq!(out, [2, 0, 1, 2].map(exact), "{isa:?} {dim}");
            }
        }
    }
}
