//! JSON as results are written in it: NULL keys stay, and numbers that JSON lacks are strings.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, FieldRef, Float32Type, Float64Type};
use arrow::error::ArrowError;
use arrow::json::writer::{
    Encoder, EncoderFactory, EncoderOptions, JsonFormat, NullableEncoder, Writer, WriterBuilder,
};

/// A writer that writes NULL as `null` beside its key, and NaN and infinities as `"NaN"`, `"Infinity"` and
/// `"-Infinity"`, because JSON has no such numbers and `null` is another value.
pub(super) fn writer<W: Write, F: JsonFormat>(out: W) -> Writer<W, F> {
    WriterBuilder::new().with_explicit_nulls(true).with_encoder_factory(Arc::new(Floats)).build(out)
}

/// Encoders of columns of floating-point numbers with values that are not finite.
#[derive(Debug)]
struct Floats;

impl EncoderFactory for Floats {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder> = match array.data_type() {
            DataType::Float32 => match values::<Float32Type>(array) {
                Some(values) => Box::new(FloatEncoder(values)),
                None => return Ok(None),
            },
            DataType::Float64 => match values::<Float64Type>(array) {
                Some(values) => Box::new(FloatEncoder(values)),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// The values of an array, if some are not finite. The encoder of arrow does for all others.
fn values<T: ArrowPrimitiveType>(array: &dyn Array) -> Option<&[T::Native]>
where
    T::Native: Into<f64>,
{
    let values: &[T::Native] = array.as_primitive_opt::<T>()?.values();
    let is_finite = |value: &T::Native| -> bool { (*value).into().is_finite() };
    (!values.iter().all(is_finite)).then_some(values)
}

struct FloatEncoder<'a, T>(&'a [T]);

impl<T: Copy + Into<f64> + serde::Serialize> Encoder for FloatEncoder<'_, T> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0[row];
        let number: f64 = value.into();
        let word: &[u8] = match number {
            number if number.is_nan() => b"\"NaN\"",
            f64::INFINITY => b"\"Infinity\"",
            f64::NEG_INFINITY => b"\"-Infinity\"",
            // A write to memory cannot fail.
            _ => return serde_json::to_writer(out, &value).unwrap_or_default(),
        };
        out.extend_from_slice(word);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float32Array, Float64Array, ListArray, StringArray};
    use arrow::json::writer::LineDelimited;
    use arrow::record_batch::RecordBatch;

    use super::*;

    #[test]
    fn nulls_keep_their_keys_and_numbers_that_json_lacks_are_strings() {
        let floats: ArrayRef = Arc::new(Float32Array::from(vec![Some(0.1), None, Some(f32::NAN), Some(f32::INFINITY)]));
        let wide: ArrayRef = Arc::new(Float64Array::from(vec![f64::NEG_INFINITY, 1e300, 0.1, -0.0]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![None, Some("a\u{7}"), None, None]));
        let list = |values: Vec<Option<f32>>| Some(values);
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>([
            list(vec![Some(f32::NAN), None]),
            None,
            list(vec![]),
            list(vec![Some(1.5)]),
        ]));
        let batch = RecordBatch::try_from_iter([("f", floats), ("w", wide), ("t", texts), ("l", lists)]).unwrap();
        let mut writer = writer::<_, LineDelimited>(Vec::new());
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        let text = String::from_utf8(writer.into_inner()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"{"f":0.1,"w":"-Infinity","t":null,"l":["NaN",null]}"#);
        assert_eq!(lines[1], r#"{"f":null,"w":1e+300,"t":"a\u0007","l":null}"#);
        assert_eq!(lines[2], r#"{"f":"NaN","w":0.1,"t":null,"l":[]}"#);
        assert_eq!(lines[3], r#"{"f":"Infinity","w":-0.0,"t":null,"l":[1.5]}"#);
    }
}
