//! The dtype of matrix products: [`Dtype`].
//!
//! Kernels compute in it, and recipes of embeddings and settings of training runs name it. It is a crate of its own, so
//! that these do not depend on each other. Depends on serde. Knows nothing of kernels or models.
//!
//! ```
//! use cellql_dtype::Dtype;
//!
//! assert_eq!("bf16".parse(), Ok(Dtype::Bf16));
//! assert_eq!(Dtype::Int8.floating(), Dtype::Bf16);
//! ```

use serde::{Deserialize, Serialize};

/// Dtype in which a model's matrix products are computed. Everything else is f32.
///
/// Stored and spelled in lower case: `f32`, `bf16`, `int8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16 products, f32 sums.
    Bf16,
    /// 8-bit integers in linear layers (unsigned activations, signed weights, i32 sums), bfloat16 in attention. For
    /// inference on the CPU only.
    Int8,
}

/// Text that names no dtype.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision '{0}': it is one of 'f32', 'bf16', 'int8'")]
pub struct UnknownDtype(pub String);

impl std::str::FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| UnknownDtype(text.to_owned()))
    }
}

impl Dtype {
    /// Every dtype, in the order they are listed to users.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Int8];

    /// Its name: `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::Int8 => "int8",
        }
    }

    /// The dtype of products that cannot be done in integers: bf16 for int8, else the same.
    pub fn floating(self) -> Self {
        match self {
            Dtype::F32 => Dtype::F32,
            Dtype::Bf16 | Dtype::Int8 => Dtype::Bf16,
        }
    }

    /// Inner elements per 32-bit lane.
    pub fn per_lane(self) -> usize {
        match self {
            Dtype::F32 => 1,
            Dtype::Bf16 => 2,
            Dtype::Int8 => 4,
        }
    }

    /// Lanes that hold `inner` elements. Lanes of packed formats come in whole tiles of sixteen.
    pub fn lanes(self, inner: usize) -> usize {
        match self {
            Dtype::F32 => inner,
            _ => inner.div_ceil(16 * self.per_lane()) * 16,
        }
    }
}
