//! Detects the instruction sets of this CPU, once per process.

use std::sync::OnceLock;

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::{
    amx,
    isa::Level,
    panel::{Extent, Operand, PANEL, Sums},
    product::{multiply_bf16, multiply_int8},
};

impl Isa {
    /// The best instructions this CPU has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Self::detect)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::PLAIN
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
        let best = Isa {
            f32: or_basic(true),
            bf16: or_basic(is_x86_feature_detected!("avx512bf16")),
            int8: or_basic(is_x86_feature_detected!("avx512vnni")),
        };
        // Tiles are used only after a product of each kind came out right on this machine.
        let tiled = Isa { bf16: Level::Amx, int8: Level::Amx, ..best };
        let has_tiles = is_x86_feature_detected!("avx512bf16") && amx::available() && agrees(tiled, best);
        if has_tiles { tiled } else { best }
    }
}

/// Whether products of every kind of tail agree between two instruction sets.
#[cfg(target_arch = "x86_64")]
fn agrees(tiled: Isa, other: Isa) -> bool {
    [1usize, 16, 17, 32, 40].into_iter().all(|rows| {
        let lanes = 32;
        let extent = Extent { rows, lanes, columns: PANEL };
        let number = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 7;
        let int8 = |n: usize| (0..n).map(number).collect::<Vec<u32>>();
        let half = |i: usize| ((number(i) % 512) as f32 / 256.0 - 1.0).to_bits() >> 16;
        let bf16 = |n: usize| (0..n).map(|i| half(2 * i) << 16 | half(2 * i + 1)).collect::<Vec<u32>>();
        let (a, b) = (int8(rows * lanes), int8(lanes * PANEL));
        let [c, d] = [tiled, other].map(|isa| {
            let mut c = vec![0; rows * PANEL];
            multiply_int8(isa, extent, Operand::by_rows(&a, lanes), &b, Sums::new(&mut c, PANEL));
            c
        });
        let (a, b) = (bf16(rows * lanes), bf16(lanes * PANEL));
        let [e, f] = [tiled, other].map(|isa| {
            let mut c = vec![1f32; rows * PANEL];
            multiply_bf16(isa, extent, Operand::by_rows(&a, lanes), &b, Sums::added(&mut c, PANEL));
            c
        });
        c == d && e.iter().zip(&f).all(|(x, y)| (x - y).abs() < 1e-3)
    })
}
