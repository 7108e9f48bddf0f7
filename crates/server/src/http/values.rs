//! JSON and `MessagePack` into a [`Value`], with a bound on how many values that becomes: a byte of either may become a value of 32
//! bytes, or more in an object.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Most values of a request, those inside of others counted too. The largest of honest ones, workflows in pictures' metadata, have some
/// thousands.
const MOST: usize = 200_000;

/// A body or message of JSON.
///
/// # Errors
/// As `serde_json` says, with line and column; and too many values.
pub fn json(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Counted(&Cell::new(MOST)).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// A message of `MessagePack`.
///
/// # Errors
/// As `rmp_serde` says; and too many values.
pub fn message_pack(bytes: &[u8]) -> Result<Value, rmp_serde::decode::Error> {
    /// As deep as JSON may be.
    const DEEPEST: usize = 128;
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEEPEST);
    Counted(&Cell::new(MOST)).deserialize(&mut reader)
}

/// Reads one value; the cell has how many there may still be.
struct Counted<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| Error::custom(format_args!("more than {MOST} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Counted(self.0))? {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            all.insert(name, members.next_value_seed(Counted(self.0))?);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_give_what_was_written() {
        let value = json!({"a": [1, -2, 3.5, true, null, "x", {}], "b": {"c": "ü"}, "d": u64::MAX, "e": i64::MIN});
        assert_eq!(json(value.to_string().as_bytes()).unwrap(), value);
        assert_eq!(message_pack(&rmp_serde::to_vec_named(&value).unwrap()).unwrap(), value);
        assert_eq!(json(b"1e400").unwrap_err().to_string(), "number out of range at line 1 column 5");
        assert!(json(b"{} x").is_err() && json(b"").is_err() && message_pack(b"").is_err());
        // A byte string and an extension are nothing that JSON has.
        assert!(message_pack(b"\xc4\x01x").is_err() && message_pack(b"\xd4\x01x").is_err());
    }

    #[test]
    fn many_and_deep_values_are_refused() {
        let zeros = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert_eq!(json(zeros(MOST - 1).as_bytes()).unwrap().as_array().unwrap().len(), MOST - 1);
        assert!(json(zeros(MOST).as_bytes()).unwrap_err().to_string().contains("more than 200000 values"));
        let mut packed = vec![0xdd];
        packed.extend(u32::MAX.to_be_bytes());
        packed.resize(MOST + 100, 0);
        assert!(message_pack(&packed).unwrap_err().to_string().contains("more than 200000 values"));
        assert!(message_pack(&vec![0x91; 100_000]).is_err() && json("[".repeat(100_000).as_bytes()).is_err());
    }
}
