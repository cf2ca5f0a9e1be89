//! Instruction sets that matrix products run on.
//!
//! [`Isa::best`] is in [`super::detection`], because it tries products before it believes in tiles.

use cellql_dtype::Dtype;

/// Instructions this CPU has, per number format. Only detection creates one with hardware levels, so a value proves
/// that the instructions exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    pub(crate) f32: Level,
    pub(crate) bf16: Level,
    pub(crate) int8: Level,
}

/// Instructions for the products of one number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 only"))]
pub(crate) enum Level {
    Plain,
    Avx2,
    Avx512,
    Amx,
}

impl Isa {
    /// No instructions beyond the target's own.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    pub(crate) const PLAIN: Isa = Isa { f32: Level::Plain, bf16: Level::Plain, int8: Level::Plain };

    /// Whether one instruction converts a vector of f32 to bf16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn converts_bf16(self) -> bool {
        matches!(self.bf16, Level::Avx512 | Level::Amx)
    }

    /// Whether products of bf16 run on tiles, which read both operands by rows.
    pub(crate) fn has_tiles(self) -> bool {
        self.bf16 == Level::Amx
    }

    /// Name of the instructions that matrix products of a number format run on, for display: `AVX-512 VNNI`.
    pub fn describe(self, dtype: Dtype) -> &'static str {
        let level = match dtype {
            Dtype::F32 => self.f32,
            Dtype::Bf16 => self.bf16,
            Dtype::Int8 => self.int8,
        };
        match (level, dtype) {
            (Level::Plain, _) => "portable code",
            (Level::Avx2, _) => "AVX2",
            (Level::Avx512, Dtype::F32) => "AVX-512",
            (Level::Avx512, Dtype::Bf16) => "AVX-512 BF16",
            (Level::Avx512, Dtype::Int8) => "AVX-512 VNNI",
            (Level::Amx, _) => "AMX",
        }
    }
}
