//! Floating-point numbers of two bytes, which hdf5-pure does not convert: IEEE half precision (numpy's `float16`) and
//! bfloat16.

use half::{bf16, f16};
use hdf5_pure::{DType, Datatype, DatatypeByteOrder, FloatingPointLayout};

/// How the numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Half {
    is_bfloat: bool,
    big_endian: bool,
}

impl Half {
    /// `None` for any other type.
    pub(crate) fn of(datatype: &Datatype) -> Option<Self> {
        let Datatype::FloatingPoint { size: 2, byte_order, layout } = datatype else {
            return None;
        };
        let FloatingPointLayout { exponent_size, mantissa_size, exponent_bias, .. } = *layout;
        let is_bfloat = match (exponent_size, mantissa_size, exponent_bias) {
            (5, 10, 15) => false,
            (8, 7, 127) => true,
            _ => return None,
        };
        let plain = layout.bit_offset == 0 && layout.bit_precision == 16 && layout.mantissa_location == 0;
        let big_endian = match byte_order {
            DatatypeByteOrder::LittleEndian => false,
            DatatypeByteOrder::BigEndian => true,
            _ => return None,
        };
        plain.then_some(Self { is_bfloat, big_endian })
    }

    /// As [`Half::of`], for a type as hdf5-pure classifies it.
    pub(crate) fn of_dtype(dtype: &DType) -> Option<Self> {
        match dtype {
            DType::Other(datatype) => Self::of(datatype),
            _ => None,
        }
    }

    /// A number from its two bytes. Every number of two bytes is exact in `f32`.
    pub(crate) fn number(self, bytes: [u8; 2]) -> f32 {
        let bits = if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
        if self.is_bfloat { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
    }

    /// The numbers in a run of bytes.
    pub(crate) fn numbers(self, bytes: &[u8]) -> impl Iterator<Item = f32> {
        bytes.chunks_exact(2).map(move |pair| self.number([pair[0], pair[1]]))
    }
}
