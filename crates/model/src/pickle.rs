//! The part of Python's pickle (protocol 2) that torch writes: plain values, dicts that may be shared, and tensors.
//!
//! candle's unpickler copies a dict into its memo while the dict is still empty, so the second use of a shared one –
//! the authors' checkpoints share configuration between their three models – comes out empty. Here shared is shared.
//! Nothing is ever executed: a call of anything but the few constructors below stays an opaque value.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A value of a pickle.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Rc<Vec<Value>>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// `module.name`
    Class(String),
    /// What torch keeps outside the pickle: the storage of a tensor.
    Storage(Rc<Vec<Value>>),
    /// A call that was not carried out: the class and its arguments.
    Call(String, Rc<Vec<Value>>),
}

/// Why bytes are no such pickle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PickleError {
    #[error("ends in the middle of a value")]
    Truncated,
    #[error("uses the instruction {0:#04x}, which torch does not write")]
    Opcode(u8),
    #[error("refers to a value that is not there")]
    Missing,
    #[error("holds {0} where something else must stand")]
    Type(&'static str),
}

type Result<T> = std::result::Result<T, PickleError>;

/// Reads a pickle.
pub(crate) fn read(bytes: &[u8]) -> Result<Value> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            return machine.pop();
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|e| *e <= self.bytes.len()).ok_or(PickleError::Truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| PickleError::Truncated)
    }

    fn word(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or(PickleError::Truncated)?;
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(text)
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().ok_or(PickleError::Missing)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.stack.push(value);
        Ok(())
    }

    /// Everything since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().filter(|m| *m <= self.stack.len()).ok_or(PickleError::Missing)?;
        Ok(self.stack.split_off(mark))
    }

    fn last(&mut self, count: usize) -> Result<Vec<Value>> {
        let from = self.stack.len().checked_sub(count).ok_or(PickleError::Missing)?;
        Ok(self.stack.split_off(from))
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let value = self.stack.last().cloned().ok_or(PickleError::Missing)?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(&key).cloned().ok_or(PickleError::Missing)?;
        self.push(value)
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.byte().map(|_| ()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.byte().and_then(|v| self.push(Value::Int(v.into()))),
            b'M' => self.array().and_then(|v| self.push(Value::Int(u16::from_le_bytes(v).into()))),
            b'J' => self.array().and_then(|v| self.push(Value::Int(i32::from_le_bytes(v).into()))),
            0x8a => self.long(),
            b'G' => self.array().and_then(|v| self.push(Value::Float(f64::from_be_bytes(v)))),
            b'X' => {
                let length = self.word()? as usize;
                let text = String::from_utf8_lossy(self.take(length)?).into_owned();
                self.push(Value::Text(text))
            }
            b'}' => self.push(Value::Dict(Rc::default())),
            b']' => self.push(Value::List(Rc::default())),
            b')' => self.push(Value::Tuple(Rc::default())),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b't' => self.since_mark().and_then(|items| self.push(Value::Tuple(Rc::new(items)))),
            0x85..=0x87 => self.last(usize::from(opcode - 0x84)).and_then(|v| self.push(Value::Tuple(Rc::new(v)))),
            b'a' => self.last(1).and_then(|items| self.extend(items)),
            b'e' => self.since_mark().and_then(|items| self.extend(items)),
            b's' => self.last(2).and_then(|pair| self.set(pair)),
            b'u' => self.since_mark().and_then(|pairs| self.set(pairs)),
            b'q' => self.byte().and_then(|key| self.remember(key.into())),
            b'r' => self.word().and_then(|key| self.remember(key)),
            b'h' => self.byte().and_then(|key| self.recall(key.into())),
            b'j' => self.word().and_then(|key| self.recall(key)),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Class(format!("{module}.{name}")))
            }
            b'Q' => match self.pop()? {
                Value::Tuple(items) => self.push(Value::Storage(items)),
                _ => Err(PickleError::Type("a storage")),
            },
            b'R' => self.call(),
            // BUILD sets attributes of the object below, such as an OrderedDict's metadata: nothing we read.
            b'b' => self.pop().map(|_| ()),
            other => Err(PickleError::Opcode(other)),
        }
    }

    fn long(&mut self) -> Result<()> {
        let length = usize::from(self.byte()?);
        if length > 8 {
            return Err(PickleError::Type("a number of more than 64 bits"));
        }
        let bytes = self.take(length)?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn extend(&mut self, items: Vec<Value>) -> Result<()> {
        match self.stack.last() {
            Some(Value::List(list)) => list.borrow_mut().extend(items),
            _ => return Err(PickleError::Type("no list")),
        }
        Ok(())
    }

    fn set(&mut self, pairs: Vec<Value>) -> Result<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err(PickleError::Type("no dict"));
        };
        let (pairs, odd) = pairs.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(PickleError::Type("a key without value"));
        }
        dict.borrow_mut().extend(pairs.iter().map(|[key, value]| (key.clone(), value.clone())));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Class(class)) = (arguments, callable) else {
            return Err(PickleError::Type("a call of no class"));
        };
        match class.as_str() {
            "collections.OrderedDict" => self.push(Value::Dict(Rc::default())),
            _ => self.push(Value::Call(class, arguments)),
        }
    }
}

impl Value {
    /// The value under a key of a dict.
    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        self.entries().into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Entries of a dict under text keys, in order; empty for anything else.
    pub(crate) fn entries(&self) -> Vec<(String, Value)> {
        let Value::Dict(dict) = self else {
            return Vec::new();
        };
        let named = |(key, value): &(Value, Value)| match key {
            Value::Text(name) => Some((name.clone(), value.clone())),
            _ => None,
        };
        dict.borrow().iter().filter_map(named).collect()
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn size(&self) -> Option<usize> {
        match self {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A tuple of sizes.
    pub(crate) fn sizes(&self) -> Option<Vec<usize>> {
        match self {
            Value::Tuple(items) => items.iter().map(Value::size).collect(),
            _ => None,
        }
    }

    /// Plain values as JSON, `None` for anything else; `depth` bounds dicts that contain themselves.
    pub(crate) fn to_json(&self, depth: usize) -> Option<serde_json::Value> {
        use serde_json::Value as Json;
        let inner = depth.checked_sub(1)?;
        let all = |items: &[Value]| Json::Array(items.iter().filter_map(|v| v.to_json(inner)).collect());
        Some(match self {
            Value::None => Json::Null,
            Value::Bool(v) => Json::from(*v),
            Value::Int(v) => Json::from(*v),
            Value::Float(v) => Json::from(*v),
            Value::Text(v) => Json::from(v.as_str()),
            Value::Tuple(items) => all(items),
            Value::List(items) => all(&items.borrow()),
            Value::Dict(_) => {
                let entries = self.entries().into_iter().filter_map(|(k, v)| Some((k, v.to_json(inner)?)));
                Json::Object(entries.collect())
            }
            Value::Class(_) | Value::Storage(_) | Value::Call(_, _) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dict_used_twice_is_whole_both_times() {
        // Python: d = {}; [d, d] with d filled in between, as pickle.dumps(protocol=2) writes {'a': d, 'b': d}.
        let bytes =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01}q\x02X\x01\x00\x00\x00kq\x03K\x07sX\x01\x00\x00\x00bq\x04h\x02u.";
        let value = read(bytes).unwrap();
        for key in ["a", "b"] {
            assert_eq!(value.get(key).unwrap().get("k").unwrap().size(), Some(7), "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = read(&bytes) {
                let _ = value.to_json(8);
            }
        }
    }
}
