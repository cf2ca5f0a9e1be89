//! The innermost loop of every matrix product: a few rows of A against a panel of 32 columns of B.
//!
//! All forms of numbers share one layout of 32-bit lanes: one f32, two bf16 or four 8-bit integers along the inner
//! dimension. A is read by broadcasting a lane, B is a panel `[lanes, 32]`, so one loop serves all three; only the
//! instruction differs (FMA, VDPBF16PS, VPDPBUSD). An element of C is one chain of sums over the inner dimension in
//! order, whatever rows stand beside it, so results do not depend on how rows are gathered. Limit: FLOPs; a strip of 14
//! rows does 28 vector operations per 2 vector loads and 14 broadcasts.
//!
//! Everything here has a plain version, which is what runs without AVX-512 and what tests compare with.

use std::sync::OnceLock;

use super::amx;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Rows of a strip: 28 of 32 vector registers hold sums.
pub(crate) const STRIP: usize = 14;

/// Instructions this CPU has. Only detection makes the ones that need hardware, so holding one proves it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    f32: Level,
    bf16: Level,
    int8: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Plain,
    Avx2,
    Avx512,
    Amx,
}

impl Isa {
    /// No instructions beyond the target's own.
    #[cfg(test)]
    pub const PLAIN: Isa = Isa { f32: Level::Plain, bf16: Level::Plain, int8: Level::Plain };

    /// The best this CPU has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Self::detect)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Isa { f32: Level::Plain, bf16: Level::Plain, int8: Level::Plain }
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        let half = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let basic = if half { Level::Avx2 } else { Level::Plain };
        let or_basic = |has: bool| if wide && has { Level::Avx512 } else { basic };
        let mut best = Isa {
            f32: or_basic(true),
            bf16: or_basic(is_x86_feature_detected!("avx512bf16")),
            int8: or_basic(is_x86_feature_detected!("avx512vnni")),
        };
        // Believed only after a product of each kind came out right on this very machine.
        let tiled = Isa { bf16: Level::Amx, int8: Level::Amx, ..best };
        if is_x86_feature_detected!("avx512bf16") && amx::available() && amx::works(tiled, best) {
            best = tiled;
        }
        best
    }

    /// Whether a vector of f32 becomes bf16 in one instruction.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn converts_bf16(self) -> bool {
        matches!(self.bf16, Level::Avx512 | Level::Amx)
    }

    /// Whether products of bf16 run on tiles, which read both operands by rows.
    pub(crate) fn has_tiles(self) -> bool {
        self.bf16 == Level::Amx
    }

    /// What the matrix products of each form run on, for people.
    pub fn describe(self, form: Form) -> &'static str {
        let level = match form {
            Form::F32 => self.f32,
            Form::Bf16 => self.bf16,
            Form::Int8 => self.int8,
        };
        match (level, form) {
            (Level::Plain, _) => "portable code",
            (Level::Avx2, _) => "AVX2",
            (Level::Avx512, Form::F32) => "AVX-512",
            (Level::Avx512, Form::Bf16) => "AVX-512 BF16",
            (Level::Avx512, Form::Int8) => "AVX-512 VNNI",
            (Level::Amx, _) => "AMX",
        }
    }
}

/// What a lane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One f32.
    F32,
    /// Two bf16.
    Bf16,
    /// Four integers of eight bits: unsigned in A, signed in B.
    Int8,
}

impl Form {
    /// Inner elements per lane.
    pub fn per_lane(self) -> usize {
        match self {
            Form::F32 => 1,
            Form::Bf16 => 2,
            Form::Int8 => 4,
        }
    }

    /// Lanes that hold `inner` elements; packed forms come in whole tiles of sixteen.
    pub fn lanes(self, inner: usize) -> usize {
        match self {
            Form::F32 => inner,
            _ => inner.div_ceil(16 * self.per_lane()) * 16,
        }
    }
}

/// Some rows of A: the lane of row `i` at inner position `p` is `data[i · row + p · step]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub step: usize,
}

impl<T> Operand<'_, T> {
    fn check(&self, rows: usize, lanes: usize) {
        assert!((rows - 1) * self.row + (lanes - 1) * self.step < self.data.len());
    }
}

fn check_panel<B, C>(rows: usize, lanes: usize, width: usize, b: &[B], c: &[C], c_row: usize) {
    assert!(lanes * PANEL <= b.len() && c_row >= width && (rows - 1) * c_row + width <= c.len());
}

/// `c = a·b`, or `c += a·b`, for `rows` rows and one panel; row `i` of C starts at `c[i · c_row]`.
#[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
pub(crate) fn multiply_f32(
    isa: Isa,
    rows: usize,
    lanes: usize,
    a: Operand<f32>,
    b: &[f32],
    c: &mut [f32],
    c_row: usize,
    add: bool,
) {
    multiply_f32_of(isa, rows, lanes, PANEL, a, b, c, c_row, add);
}

/// As [`multiply_f32`] where only the first `columns` of the panel are wanted: of sixteen or fewer the first sixteen are
/// written, in half the time, else all of the panel.
#[allow(unsafe_code, reason = "calls kernels of raw pointers, behind checks of every bound")]
#[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
pub(crate) fn multiply_f32_of(
    isa: Isa,
    rows: usize,
    lanes: usize,
    columns: usize,
    a: Operand<f32>,
    b: &[f32],
    c: &mut [f32],
    c_row: usize,
    add: bool,
) {
    if rows == 0 || lanes == 0 {
        return;
    }
    a.check(rows, lanes);
    let width = if columns <= PANEL / 2 { PANEL / 2 } else { PANEL };
    check_panel(rows, lanes, width, b, c, c_row);
    match isa.f32 {
        // SAFETY: the checks above cover every element read and written; the level proves the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx if width < PANEL => unsafe {
            x86::f32_rows::<1>(rows, lanes, a.data.as_ptr(), a.row, a.step, b.as_ptr(), c.as_mut_ptr(), c_row, add);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe {
            x86::f32_rows::<2>(rows, lanes, a.data.as_ptr(), a.row, a.step, b.as_ptr(), c.as_mut_ptr(), c_row, add);
        },
        // SAFETY: the level proves the instructions; the body itself is checked code.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::f32_rows_avx2(rows, lanes, width, a, b, c, c_row, add) },
        _ => plain::f32_rows::<false>(rows, lanes, width, a, b, c, c_row, add),
    }
}

/// As [`multiply_f32`], lanes being pairs of bf16 and sums f32.
#[allow(unsafe_code, reason = "calls kernels of raw pointers, behind checks of every bound")]
#[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
pub(crate) fn multiply_bf16(
    isa: Isa,
    rows: usize,
    lanes: usize,
    a: Operand<u32>,
    b: &[u32],
    c: &mut [f32],
    c_row: usize,
    add: bool,
) {
    if rows == 0 || lanes == 0 {
        return;
    }
    a.check(rows, lanes);
    check_panel(rows, lanes, PANEL, b, c, c_row);
    match isa.bf16 {
        // SAFETY: as in `multiply_f32`; tiles of sixteen lanes read no further than `lanes`, a multiple of sixteen.
        #[cfg(target_arch = "x86_64")]
        Level::Amx if lanes.is_multiple_of(16) && a.step == 1 => unsafe {
            amx::rows::<false>(rows, lanes, a.data.as_ptr(), a.row, b.as_ptr(), c.as_mut_ptr().cast(), c_row, add);
        },
        // SAFETY: as in `multiply_f32`.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe {
            x86::bf16_rows::<2>(rows, lanes, a.data.as_ptr(), a.row, a.step, b.as_ptr(), c.as_mut_ptr(), c_row, add);
        },
        // SAFETY: the level proves the instructions; the body itself is checked code.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::bf16_rows_avx2(rows, lanes, a, b, c, c_row, add) },
        _ => plain::bf16_rows::<false>(rows, lanes, a, b, c, c_row, add),
    }
}

/// As [`multiply_f32`], lanes being four integers (A unsigned, B signed) and sums i32.
#[allow(unsafe_code, reason = "calls kernels of raw pointers, behind checks of every bound")]
pub(crate) fn multiply_int8(isa: Isa, rows: usize, lanes: usize, a: Operand<u32>, b: &[u32], c: &mut [i32]) {
    if rows == 0 || lanes == 0 {
        return;
    }
    a.check(rows, lanes);
    check_panel(rows, lanes, PANEL, b, c, PANEL);
    match isa.int8 {
        // SAFETY: as in `multiply_bf16`.
        #[cfg(target_arch = "x86_64")]
        Level::Amx if lanes.is_multiple_of(16) && a.step == 1 => unsafe {
            amx::rows::<true>(rows, lanes, a.data.as_ptr(), a.row, b.as_ptr(), c.as_mut_ptr(), PANEL, false);
        },
        // SAFETY: as in `multiply_f32`.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe {
            x86::int8_rows::<2>(rows, lanes, a.data.as_ptr(), a.row, a.step, b.as_ptr(), c.as_mut_ptr(), PANEL, false);
        },
        // SAFETY: the level proves the instructions; the body itself is checked code.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::int8_rows_avx2(rows, lanes, a, b, c) },
        _ => plain::int8_rows(rows, lanes, a, b, c),
    }
}

/// The same products without intrinsics, written so that a compiler can use vectors.
mod plain {
    use super::{Operand, PANEL};
    use crate::simd::multiply_add;

    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
    pub(super) fn f32_rows<const FUSED: bool>(
        rows: usize,
        lanes: usize,
        width: usize,
        a: Operand<f32>,
        b: &[f32],
        c: &mut [f32],
        c_row: usize,
        add: bool,
    ) {
        let (panel, _) = b[..lanes * PANEL].as_chunks::<PANEL>();
        for i in 0..rows {
            let out = &mut c[i * c_row..][..width];
            let mut sums = [0f32; PANEL];
            if add {
                sums[..width].copy_from_slice(out);
            }
            for (p, b) in panel.iter().enumerate() {
                let x = a.data[i * a.row + p * a.step];
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = multiply_add::<FUSED>(x, *b, *sum);
                }
            }
            out.copy_from_slice(&sums[..width]);
        }
    }

    /// The f32 whose upper half these sixteen bits are.
    #[inline(always)]
    fn halves(lane: u32) -> (f32, f32) {
        (f32::from_bits(lane << 16), f32::from_bits(lane & 0xffff_0000))
    }

    #[inline(always)]
    pub(super) fn bf16_rows<const FUSED: bool>(
        rows: usize,
        lanes: usize,
        a: Operand<u32>,
        b: &[u32],
        c: &mut [f32],
        c_row: usize,
        add: bool,
    ) {
        let (panel, _) = b[..lanes * PANEL].as_chunks::<PANEL>();
        for i in 0..rows {
            let out = &mut c[i * c_row..][..PANEL];
            let mut sums = [0f32; PANEL];
            if add {
                sums.copy_from_slice(out);
            }
            for (p, b) in panel.iter().enumerate() {
                let (low, high) = halves(a.data[i * a.row + p * a.step]);
                for (sum, b) in sums.iter_mut().zip(b) {
                    let (b_low, b_high) = halves(*b);
                    *sum = multiply_add::<FUSED>(low, b_low, multiply_add::<FUSED>(high, b_high, *sum));
                }
            }
            out.copy_from_slice(&sums);
        }
    }

    #[inline(always)]
    pub(super) fn int8_rows(rows: usize, lanes: usize, a: Operand<u32>, b: &[u32], c: &mut [i32]) {
        let (panel, _) = b[..lanes * PANEL].as_chunks::<PANEL>();
        for i in 0..rows {
            let mut sums = [0i32; PANEL];
            for (p, b) in panel.iter().enumerate() {
                let x = a.data[i * a.row + p * a.step].to_le_bytes().map(i32::from);
                for (sum, b) in sums.iter_mut().zip(b) {
                    let b = b.to_le_bytes().map(|byte| i32::from(byte as i8));
                    *sum += x[0] * b[0] + x[1] * b[1] + x[2] * b[2] + x[3] * b[3];
                }
            }
            c[i * PANEL..][..PANEL].copy_from_slice(&sums);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions on raw pointers; callers check every bound and the CPU")]
#[allow(unsafe_op_in_unsafe_fn, reason = "the whole body is such instructions")]
#[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Operand, PANEL, STRIP, plain};

    /// Strips of A, each against the first 16·V columns of a panel. The instructions differ, the loop does not.
    macro_rules! rows {
        ($name:ident, $strip:ident, $features:literal, $lane:ty, $sum:ty, $vector:ty, $zero:expr, $load:expr,
         $store:expr, $broadcast:expr, $read:expr, $step:expr) => {
            /// # Safety
            /// Every element that `rows`, `lanes` and the strides reach must be readable (A, B) or writable (C), and the
            /// CPU must have the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const V: usize>(
                rows: usize,
                lanes: usize,
                a: *const $lane,
                row: usize,
                step: usize,
                b: *const $lane,
                c: *mut $sum,
                c_row: usize,
                add: bool,
            ) {
                let mut first = 0;
                while first < rows {
                    let (a, c) = (a.add(first * row), c.add(first * c_row));
                    macro_rules! strips {
                        ($count:expr; $n:literal $rest:tt) => {
                            if $count >= $n { $strip::<$n, V>(lanes, a, row, step, b, c, c_row, add); $n }
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
            unsafe fn $strip<const M: usize, const V: usize>(
                lanes: usize,
                a: *const $lane,
                row: usize,
                step: usize,
                b: *const $lane,
                c: *mut $sum,
                c_row: usize,
                add: bool,
            ) {
                let mut sums: [[$vector; V]; M] = [[$zero; V]; M];
                if add {
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

    /// # Safety
    /// The CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn f32_rows_avx2(
        rows: usize,
        lanes: usize,
        width: usize,
        a: Operand<f32>,
        b: &[f32],
        c: &mut [f32],
        c_row: usize,
        add: bool,
    ) {
        plain::f32_rows::<true>(rows, lanes, width, a, b, c, c_row, add);
    }

    /// # Safety
    /// The CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn bf16_rows_avx2(
        rows: usize,
        lanes: usize,
        a: Operand<u32>,
        b: &[u32],
        c: &mut [f32],
        c_row: usize,
        add: bool,
    ) {
        plain::bf16_rows::<true>(rows, lanes, a, b, c, c_row, add);
    }

    /// # Safety
    /// The CPU must have AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn int8_rows_avx2(rows: usize, lanes: usize, a: Operand<u32>, b: &[u32], c: &mut [i32]) {
        plain::int8_rows(rows, lanes, a, b, c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn lanes_of(form: Form, n: usize, rng: &mut impl Rng) -> Vec<u32> {
        (0..n)
            .map(|_| match form {
                Form::F32 => rng.random_range(-1f32..1.0).to_bits(),
                Form::Bf16 => {
                    let mut half = || rng.random_range(-1f32..1.0).to_bits() >> 16;
                    half() << 16 | half()
                }
                Form::Int8 => rng.random(),
            })
            .collect()
    }

    #[test]
    fn every_instruction_set_gives_what_plain_code_gives() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for (rows, lanes) in [(1, 16), (13, 32), (14, 48), (15, 16), (33, 32), (64, 192)] {
            let row = lanes + 16;
            let [a, b] = [rows * row, lanes * PANEL].map(|n| lanes_of(Form::Int8, n, &mut rng));
            let a = Operand { data: &a, row, step: 1 };
            let mut c = [vec![1; rows * PANEL], vec![2; rows * PANEL]];
            multiply_int8(Isa::best(), rows, lanes, a, &b, &mut c[0]);
            multiply_int8(Isa::PLAIN, rows, lanes, a, &b, &mut c[1]);
            assert_eq!(c[0], c[1]);

            let [a, b] = [rows * row, lanes * PANEL].map(|n| lanes_of(Form::Bf16, n, &mut rng));
            let a = Operand { data: &a, row, step: 1 };
            let mut c = [vec![0.5; rows * 40], vec![0.5; rows * 40]];
            for (c, isa) in c.iter_mut().zip([Isa::best(), Isa::PLAIN]) {
                multiply_bf16(isa, rows, lanes, a, &b, c, 40, true);
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
        for (row, step) in [(inner, 1), (1, rows)] {
            for isa in [Isa::best(), Isa::PLAIN] {
                for columns in [PANEL, 16, 5] {
                    let mut c = vec![3f32; rows * PANEL];
                    multiply_f32_of(
                        isa,
                        rows,
                        inner,
                        columns,
                        Operand { data: &a, row, step },
                        &b,
                        &mut c,
                        PANEL,
                        true,
                    );
                    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                        let exact: f64 = (0..inner)
                            .map(|p| f64::from(a[i * row + p * step]) * f64::from(b[p * PANEL + j]))
                            .sum::<f64>()
                            + 3.0;
                        assert!((f64::from(c[i * PANEL + j]) - exact).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
