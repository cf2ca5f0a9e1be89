//! Matrix products on AMX tiles (Intel, from Sapphire Rapids on): 16 rows of 64 bytes a tile.
//!
//! Rust has no stable intrinsics for it, inline assembly is stable. Operands have the layout of [`super::tile`]: sixteen
//! lanes of A are a tile's row, and sixteen lanes by half a panel of B are a tile, so nothing is packed a second time. Two
//! tiles of A and two of B make four tiles of sums. Limit: FLOPs; a step reads four tiles for four products.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 only"))]

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{available, rows, works};

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "assembly on raw pointers; callers check every bound and the CPU")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use crate::tile::{Isa, Operand, PANEL, multiply_bf16, multiply_int8};

    /// Whether the CPU has AMX for bf16 and 8-bit integers and the system lets this process use it.
    pub(crate) fn available() -> bool {
        if !cfg!(target_os = "linux") || __cpuid(0).eax < 7 {
            return false;
        }
        let edx = __cpuid_count(7, 0).edx;
        let (bf16, tile, int8) = (edx >> 22 & 1 == 1, edx >> 24 & 1 == 1, edx >> 25 & 1 == 1);
        bf16 && tile && int8 && permitted()
    }

    /// Asks Linux for the tiles' state, once for the process: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    fn permitted() -> bool {
        let result: isize;
        // SAFETY: a system call that reads no memory of ours.
        unsafe {
            asm!("syscall", inlateout("rax") 158isize => result, in("rdi") 0x1023, in("rsi") 18,
                 lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result == 0
    }

    /// Whether products of every shape of tail come out as AVX-512 or plain code has them.
    pub(crate) fn works(tiled: Isa, other: Isa) -> bool {
        [1usize, 16, 17, 32, 40].into_iter().all(|rows| {
            let lanes = 32;
            let number = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 7;
            let int8 = |n: usize| (0..n).map(number).collect::<Vec<u32>>();
            let half = |i: usize| ((number(i) % 512) as f32 / 256.0 - 1.0).to_bits() >> 16;
            let bf16 = |n: usize| (0..n).map(|i| half(2 * i) << 16 | half(2 * i + 1)).collect::<Vec<u32>>();
            let (a, b) = (int8(rows * lanes), int8(lanes * PANEL));
            let a = Operand { data: &a, row: lanes, step: 1 };
            let mut c = [vec![0; rows * PANEL], vec![0; rows * PANEL]];
            multiply_int8(tiled, rows, lanes, a, &b, &mut c[0]);
            multiply_int8(other, rows, lanes, a, &b, &mut c[1]);
            let (a, b) = (bf16(rows * lanes), bf16(lanes * PANEL));
            let a = Operand { data: &a, row: lanes, step: 1 };
            let mut d = [vec![1f32; rows * PANEL], vec![1f32; rows * PANEL]];
            multiply_bf16(tiled, rows, lanes, a, &b, &mut d[0], PANEL, true);
            multiply_bf16(other, rows, lanes, a, &b, &mut d[1], PANEL, true);
            c[0] == c[1] && d[0].iter().zip(&d[1]).all(|(x, y)| (x - y).abs() < 1e-3)
        })
    }

    /// The operand of LDTILECFG: palette 1, then bytes per row and rows of eight tiles.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Shapes {
        /// Tiles 0 to 3 are sums (upper and lower rows by left and right columns), 4 and 5 A, 6 and 7 B.
        fn new(upper: usize, lower: usize) -> Self {
            let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
            let (upper, lower) = (upper as u8, lower.max(1) as u8);
            for (tile, rows) in [upper, upper, lower, lower, upper, lower, 16, 16].into_iter().enumerate() {
                shapes.row_bytes[tile] = 64;
                shapes.rows[tile] = rows;
            }
            shapes
        }
    }

    /// `c = a·b` or `c += a·b` as [`multiply_int8`] (`INT8`) and [`multiply_bf16`] have it.
    ///
    /// # Safety
    /// [`available`] said yes; `lanes` is a multiple of sixteen; A is readable for `rows` rows of `lanes` lanes, `row`
    /// apart; B for `lanes` panels of 32 lanes; C is writable for `rows` rows of 32, `c_row` apart.
    #[allow(clippy::too_many_arguments, reason = "the shape of a matrix product")]
    pub(crate) unsafe fn rows<const INT8: bool>(
        rows: usize,
        lanes: usize,
        a: *const u32,
        row: usize,
        b: *const u32,
        c: *mut i32,
        c_row: usize,
        add: bool,
    ) {
        let mut shaped = (0, 0);
        let mut first = 0;
        while first < rows {
            let shape = ((rows - first).min(16), (rows - first).saturating_sub(16).min(16));
            // SAFETY: by this function's contract; a tile of A reads `shape` rows of 64 bytes, and where there is no
            // lower half its pointer stays on the upper one.
            unsafe {
                if shape != shaped {
                    let shapes = Shapes::new(shape.0, shape.1);
                    asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly));
                    shaped = shape;
                }
                let (a, c) = (a.add(first * row), c.add(first * c_row));
                if shape.1 == 0 {
                    upper::<INT8>(lanes, a, row, b, c, c_row, add);
                } else {
                    both::<INT8>(lanes, a, row, b, c, c_row, add);
                }
            }
            first += 32;
        }
        // SAFETY: gives the tiles back, so that the system need not save them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Up to 16 rows.
    unsafe fn upper<const INT8: bool>(
        lanes: usize,
        a: *const u32,
        row: usize,
        b: *const u32,
        c: *mut i32,
        c_row: usize,
        add: bool,
    ) {
        let (a_bytes, b_bytes, c_bytes) = (row * 4, PANEL * 4, c_row * 4);
        // SAFETY: by the contract of `rows`.
        unsafe {
            if add {
                asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                     c = in(reg) c, s = in(reg) c_bytes, options(nostack));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack));
            }
            for p in (0..lanes).step_by(16) {
                let (a, b) = (a.add(p), b.add(p * PANEL));
                asm!("tileloadd tmm4, [{a} + {sa}]", "tileloadd tmm6, [{b} + {sb}]", "tileloadd tmm7, [{b} + {sb} + 64]",
                     a = in(reg) a, sa = in(reg) a_bytes, b = in(reg) b, sb = in(reg) b_bytes, options(nostack));
                if INT8 {
                    asm!("tdpbusd tmm0, tmm4, tmm6", "tdpbusd tmm1, tmm4, tmm7", options(nostack));
                } else {
                    asm!("tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", options(nostack));
                }
            }
            asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
                 c = in(reg) c, s = in(reg) c_bytes, options(nostack));
        }
    }

    /// 17 to 32 rows.
    unsafe fn both<const INT8: bool>(
        lanes: usize,
        a: *const u32,
        row: usize,
        b: *const u32,
        c: *mut i32,
        c_row: usize,
        add: bool,
    ) {
        let (a_bytes, b_bytes, c_bytes) = (row * 4, PANEL * 4, c_row * 4);
        // SAFETY: by the contract of `rows`.
        unsafe {
            let (a_low, c_low) = (a.add(16 * row), c.add(16 * c_row));
            if add {
                asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                     "tileloadd tmm2, [{d} + {s}]", "tileloadd tmm3, [{d} + {s} + 64]",
                     c = in(reg) c, d = in(reg) c_low, s = in(reg) c_bytes, options(nostack));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
            }
            for p in (0..lanes).step_by(16) {
                let (a, a_low, b) = (a.add(p), a_low.add(p), b.add(p * PANEL));
                asm!("tileloadd tmm4, [{a} + {sa}]", "tileloadd tmm5, [{l} + {sa}]",
                     "tileloadd tmm6, [{b} + {sb}]", "tileloadd tmm7, [{b} + {sb} + 64]",
                     a = in(reg) a, l = in(reg) a_low, sa = in(reg) a_bytes, b = in(reg) b, sb = in(reg) b_bytes,
                     options(nostack));
                if INT8 {
                    asm!(
                        "tdpbusd tmm0, tmm4, tmm6",
                        "tdpbusd tmm1, tmm4, tmm7",
                        "tdpbusd tmm2, tmm5, tmm6",
                        "tdpbusd tmm3, tmm5, tmm7",
                        options(nostack)
                    );
                } else {
                    asm!(
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        options(nostack)
                    );
                }
            }
            asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
                 "tilestored [{d} + {s}], tmm2", "tilestored [{d} + {s} + 64], tmm3",
                 c = in(reg) c, d = in(reg) c_low, s = in(reg) c_bytes, options(nostack));
        }
    }
}
