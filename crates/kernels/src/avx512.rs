//! Matrix products on AVX-512 vectors: one loop for every number format, only the instructions differ.

#![allow(unsafe_code, reason = "vector instructions on raw pointers; callers check every bound and the CPU")]
#![allow(unsafe_op_in_unsafe_fn, reason = "the whole body is such instructions")]

use std::arch::x86_64::*;

use super::panel::{PANEL, RawProduct, STRIP};

/// Strips of A, each against the first 16·V columns of a panel. The instructions differ, the loop does not.
macro_rules! rows {
    ($name:ident, $strip:ident, $features:literal, $lane:ty, $sum:ty, $vector:ty, $zero:expr, $load:expr,
     $store:expr, $broadcast:expr, $read:expr, $step:expr) => {
        /// # Safety
        /// The product was checked, and the CPU has the features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const V: usize>(product: RawProduct<$lane, $sum>) {
            let RawProduct { rows, a, row, c, c_row, .. } = product;
            let mut first = 0;
            while first < rows {
                let strip = RawProduct { a: a.add(first * row), c: c.add(first * c_row), ..product };
                macro_rules! strips {
                    ($count:expr; $n:literal $rest:tt) => {
                        if $count >= $n { $strip::<$n, V>(strip); $n }
                        else { strips!($count; $rest) }
                    };
                    ($count:expr; ($n:literal $rest:tt)) => { strips!($count; $n $rest) };
                    ($count:expr; ()) => { rows };
                }
                first += strips!(rows - first;
                    14 (13 (12 (11 (10 (9 (8 (7 (6 (5 (4 (3 (2 (1 ()))))))))))))));
            }
            const { assert!(STRIP == 14) };
        }

        #[target_feature(enable = $features)]
        unsafe fn $strip<const M: usize, const V: usize>(strip: RawProduct<$lane, $sum>) {
            let RawProduct { lanes, a, row, step, b, c, c_row, adds, .. } = strip;
            let mut sums: [[$vector; V]; M] = [[$zero; V]; M];
            if adds {
                for i in 0..M {
                    for v in 0..V {
                        sums[i][v] = $load(c.add(i * c_row + 16 * v).cast());
                    }
                }
            }
            for p in 0..lanes {
                let mut b_of = [$read(b.add(p * PANEL).cast()); V];
                for v in 1..V {
                    b_of[v] = $read(b.add(p * PANEL + 16 * v).cast());
                }
                for i in 0..M {
                    let x = $broadcast(*a.add(i * row + p * step));
                    for v in 0..V {
                        sums[i][v] = $step(sums[i][v], x, b_of[v]);
                    }
                }
            }
            for i in 0..M {
                for v in 0..V {
                    $store(c.add(i * c_row + 16 * v).cast(), sums[i][v]);
                }
            }
        }
    };
}

rows!(
    f32_rows,
    f32_strip,
    "avx512f",
    f32,
    f32,
    __m512,
    _mm512_setzero_ps(),
    |p| _mm512_loadu_ps(p),
    |p, v| _mm512_storeu_ps(p, v),
    |x| _mm512_set1_ps(x),
    |p| _mm512_loadu_ps(p),
    |c, a, b| _mm512_fmadd_ps(a, b, c)
);

rows!(
    bf16_rows,
    bf16_strip,
    "avx512f,avx512bw,avx512bf16",
    u32,
    f32,
    __m512,
    _mm512_setzero_ps(),
    |p| _mm512_loadu_ps(p),
    |p, v| _mm512_storeu_ps(p, v),
    |x: u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32)),
    |p| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p)),
    |c, a, b| _mm512_dpbf16_ps(c, a, b)
);

rows!(
    int8_rows,
    int8_strip,
    "avx512f,avx512bw,avx512vnni",
    u32,
    i32,
    __m512i,
    _mm512_setzero_si512(),
    |p| _mm512_loadu_si512(p),
    |p, v| _mm512_storeu_si512(p, v),
    |x: u32| _mm512_set1_epi32(x as i32),
    |p| _mm512_loadu_si512(p),
    |c, a, b| _mm512_dpbusd_epi32(c, a, b)
);
