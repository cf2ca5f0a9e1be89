//! Matrix products on AMX tiles (Intel, from Sapphire Rapids on): 16 rows of 64 bytes a tile.
//!
//! Rust has no stable intrinsics for AMX, but inline assembly is stable. Operands have the layout of [`super::panel`]:
//! sixteen lanes of A are a tile's row, and sixteen lanes by half a panel of B are a tile, so nothing is packed a
//! second time. Two tiles of A and two of B give four tiles of sums. Limit: FLOPs; a step reads four tiles for four
//! products.

#![allow(unsafe_code, reason = "assembly on raw pointers; callers check every bound and the CPU")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::panel::{PANEL, RawProduct};

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

/// `c = a·b` or `c += a·b`: integers of eight bits (`INT8`) or pairs of bf16.
///
/// # Safety
/// [`available`] said yes; the product was checked; its `lanes` are a multiple of sixteen and its `step` is 1.
pub(crate) unsafe fn rows<S, const INT8: bool>(product: RawProduct<u32, S>) {
    const { assert!(size_of::<S>() == 4) };
    let RawProduct { rows, a, row, c, c_row, .. } = product;
    let mut shaped = (0, 0);
    let mut first = 0;
    while first < rows {
        let shape = ((rows - first).min(16), (rows - first).saturating_sub(16).min(16));
        // SAFETY: by this function's contract; a tile of A reads `shape` rows of 64 bytes, and where there is no lower
        // half its pointer stays on the upper one.
        unsafe {
            if shape != shaped {
                let shapes = Shapes::new(shape.0, shape.1);
                asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly));
                shaped = shape;
            }
            let block = RawProduct { a: a.add(first * row), c: c.add(first * c_row), ..product };
            if shape.1 == 0 {
                upper::<S, INT8>(block);
            } else {
                both::<S, INT8>(block);
            }
        }
        first += 32;
    }
    // SAFETY: gives the tiles back, so that the system need not save them.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Up to 16 rows.
unsafe fn upper<S, const INT8: bool>(block: RawProduct<u32, S>) {
    let RawProduct { lanes, a, row, b, c, c_row, adds, .. } = block;
    let (a_bytes, b_bytes, c_bytes) = (row * 4, PANEL * 4, c_row * 4);
    // SAFETY: by the contract of `rows`.
    unsafe {
        if adds {
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
unsafe fn both<S, const INT8: bool>(block: RawProduct<u32, S>) {
    let RawProduct { lanes, a, row, b, c, c_row, adds, .. } = block;
    let (a_bytes, b_bytes, c_bytes) = (row * 4, PANEL * 4, c_row * 4);
    // SAFETY: by the contract of `rows`.
    unsafe {
        let (a_low, c_low) = (a.add(16 * row), c.add(16 * c_row));
        if adds {
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
