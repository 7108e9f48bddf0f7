//! A vendor's parameters as a table: one row says the name, what is accepted, the default and what becomes of it here. The same
//! table reads bodies, fills the documentation and the OpenAPI file.
//!
//! Rules that all vendors share: unknown parameters are ignored, `null` is absent, numbers and flags may come as strings (forms
//! send nothing else), whole numbers as `28.0`; what is out of range is an error, and all problems are reported at once.

use serde_json::{Map, Number, Value};

use crate::error::{Fault, Problem, Rule};

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The vendor's name.
    pub name: &'static str,
    /// Other names for the same, in the order in which they are looked at after `name`.
    pub aliases: &'static [&'static str],
    /// What is accepted.
    pub kind: Kind,
    /// The value where none is given, as JSON; empty: none.
    pub default: &'static str,
    /// Whether it has to be there.
    pub required: bool,
    /// What becomes of it.
    pub treatment: Treatment,
    /// One sentence for people.
    pub about: &'static str,
}

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A string of at most so many characters.
    Text(usize),
    /// A whole number in a range, both ends included.
    Integer(i128, i128),
    /// A number in a range, both ends included.
    Number(f64, f64),
    /// `true` or `false`.
    Flag,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A picture: a URL, a data URI, a file of a form.
    Picture,
    /// Anything; the dialect looks at it itself.
    Any,
}

/// What becomes of a parameter: the gateway's four words, and the honest fifth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It means the same here.
    Passthrough,
    /// It means what this internal field does.
    Renamed(&'static str),
    /// Its value is translated.
    Converted(&'static str),
    /// The model does not have it; the server does it around the model.
    Emulated(&'static str),
    /// Accepted and without effect; the reason.
    Ignored(&'static str),
}

/// A field that is passed through, with neither alias nor default; change what is different.
pub const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, aliases: &[], kind, default: "", required: false, treatment: Treatment::Passthrough, about }
}

impl Field {
    /// Also under these names.
    pub const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// This where nothing is given, as JSON.
    pub const fn default(mut self, json: &'static str) -> Self {
        self.default = json;
        self
    }

    /// It has to be there.
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// What becomes of it.
    pub const fn treated(mut self, treatment: Treatment) -> Self {
        self.treatment = treatment;
        self
    }
}

/// What a body said, checked; by the fields' own names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values(Map<String, Value>);

impl Values {
    /// The value, if there is one or a default.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// A whole number that fits.
    pub fn integer<T: TryFrom<i128>>(&self, name: &str) -> Option<T> {
        T::try_from(whole(self.get(name)?)?).ok()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.as_f64()
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    /// The string of a field that is required or has a default.
    pub fn the_text(&self, name: &str) -> &str {
        let text = self.text(name);
        debug_assert!(text.is_some(), "{name} is neither required nor has a default");
        text.unwrap_or_default()
    }

    /// The whole number of a field that is required or has a default.
    pub fn the_integer<T: TryFrom<i128> + Default>(&self, name: &str) -> T {
        let integer = self.integer(name);
        debug_assert!(integer.is_some(), "{name} is neither required nor has a default, or its range does not fit");
        integer.unwrap_or_default()
    }

    /// The number of a field that is required or has a default.
    pub fn the_number(&self, name: &str) -> f32 {
        let number = self.number(name);
        debug_assert!(number.is_some(), "{name} is neither required nor has a default");
        number.unwrap_or_default() as f32
    }

    /// The flag of a field that is required or has a default.
    pub fn the_flag(&self, name: &str) -> bool {
        let flag = self.flag(name);
        debug_assert!(flag.is_some(), "{name} is neither required nor has a default");
        flag.unwrap_or_default()
    }
}

/// Reads a body by its table.
///
/// # Errors
/// [`Fault::Invalid`] with every problem found.
pub fn read(fields: &[Field], body: &Map<String, Value>) -> Result<Values, Fault> {
    let mut values = Map::new();
    let mut problems = Vec::new();
    for field in fields {
        let given = std::iter::once(&field.name)
            .chain(field.aliases)
            .find_map(|name| body.get(*name).filter(|value| !value.is_null()).map(|value| (*name, value)));
        match given {
            Some((name, value)) => match check(field.kind, value) {
                Ok(value) => {
                    values.insert(field.name.into(), value);
                }
                Err((rule, message)) => problems.push(Problem { field: name.into(), message, rule }),
            },
            None if field.required => {
                problems.push(Problem { field: field.name.into(), message: "is required".into(), rule: Rule::Missing });
            }
            None if !field.default.is_empty() => {
                // The tables are ours: a default that is no JSON is a bug that `bad_defaults` finds.
                if let Ok(value) = serde_json::from_str(field.default) {
                    values.insert(field.name.into(), value);
                }
            }
            None => {}
        }
    }
    if problems.is_empty() { Ok(Values(values)) } else { Err(Fault::Invalid(problems)) }
}

/// Fields of a table whose default is no JSON or would not be accepted; for the tests of each table.
pub fn bad_defaults(fields: &[Field]) -> Vec<&'static str> {
    let bad = |field: &&Field| {
        let default = serde_json::from_str(field.default);
        !field.default.is_empty() && default.map_or(true, |value| check(field.kind, &value).is_err())
    };
    fields.iter().filter(bad).map(|field| field.name).collect()
}

/// The value in the form that [`Values`] gives out.
fn check(kind: Kind, value: &Value) -> Result<Value, (Rule, String)> {
    let bounds = |value: f64, least: f64, most: f64| {
        if value < least {
            Err((Rule::AtLeast(least), format!("has to be at least {least}")))
        } else if value > most {
            Err((Rule::AtMost(most), format!("has to be at most {most}")))
        } else {
            Ok(())
        }
    };
    match kind {
        Kind::Text(longest) => {
            let text = value.as_str().ok_or_else(|| (Rule::Text, "has to be a string".to_owned()))?;
            if text.chars().count() > longest {
                return Err((Rule::Longest(longest), format!("has to be at most {longest} characters long")));
            }
            Ok(value.clone())
        }
        Kind::Integer(least, most) => {
            let number = whole(value).ok_or_else(|| (Rule::Integer, "has to be a whole number".to_owned()))?;
            bounds(number as f64, least as f64, most as f64)?;
            if number < least || number > most {
                return Err((Rule::AtMost(most as f64), format!("has to be between {least} and {most}")));
            }
            Number::from_i128(number).map(Value::Number).ok_or_else(|| (Rule::Integer, "is too large".to_owned()))
        }
        Kind::Number(least, most) => {
            let number = match value {
                Value::Number(number) => number.as_f64(),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            };
            let number = number
                .filter(|number| number.is_finite())
                .ok_or_else(|| (Rule::Number, "has to be a number".to_owned()))?;
            bounds(number, least, most)?;
            Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
        }
        Kind::Flag => match value {
            Value::Bool(_) => Ok(value.clone()),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(Value::Bool(false)),
            Value::Number(number) if number.as_u64() == Some(1) => Ok(Value::Bool(true)),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "on" | "yes" => Ok(Value::Bool(true)),
                "false" | "0" | "off" | "no" | "" => Ok(Value::Bool(false)),
                _ => Err((Rule::Flag, "has to be true or false".into())),
            },
            _ => Err((Rule::Flag, "has to be true or false".into())),
        },
        Kind::Choice(choices) => {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(), // megapixels: 1
                _ => String::new(),
            };
            match choices.iter().find(|choice| **choice == text) {
                Some(choice) => Ok(Value::String((*choice).to_owned())),
                None => Err((
                    Rule::OneOf(choices.iter().map(|&choice| choice.to_owned()).collect()),
                    format!("has to be one of {}", choices.join(", ")),
                )),
            }
        }
        Kind::Picture => match value {
            Value::String(_) => Ok(value.clone()),
            _ => Err((Rule::Text, "has to be a URL or a data URI".into())),
        },
        Kind::Any => Ok(value.clone()),
    }
}

/// A whole number, also as `28.0` and `"28"`.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) => number.as_i128().or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i128)
        }),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| whole(&Value::Number(Number::from_f64(text.parse().ok()?)?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TABLE: [Field; 6] = [
        field("prompt", Kind::Text(10), "").required(),
        field("steps", Kind::Integer(1, 50), "").or(&["num_inference_steps"]).default("28"),
        field("guidance", Kind::Number(0.0, 20.0), "").default("4.5"),
        field("sync", Kind::Flag, "").default("false"),
        field("megapixels", Kind::Choice(&["1", "0.25"]), "").default("\"1\""),
        field("seed", Kind::Integer(0, u64::MAX as i128), ""),
    ];

    fn body(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_bad_default_is_found() {
        assert!(bad_defaults(&TABLE).is_empty());
        let wrong = [field("a", Kind::Flag, "").default("x"), field("b", Kind::Integer(1, 2), "").default("3")];
        assert_eq!(bad_defaults(&wrong), ["a", "b"]);
    }

    #[test]
    fn forms_and_json_mean_the_same() {
        let json =
            read(&TABLE, &body(&json!({"prompt": "fox", "steps": 7, "guidance": 3, "sync": true, "megapixels": 0.25})));
        let form = read(
            &TABLE,
            &body(&json!({"prompt": "fox", "num_inference_steps": "7", "guidance": "3.0", "sync": "true",
                         "megapixels": "0.25", "obj[a]": "x"})),
        );
        assert_eq!(json, form);
        let values = json.unwrap();
        assert_eq!((values.integer::<u32>("steps"), values.number("guidance")), (Some(7), Some(3.0)));
        assert_eq!((values.flag("sync"), values.text("megapixels")), (Some(true), Some("0.25")));
    }

    #[test]
    fn null_is_absent_and_large_seeds_stay_whole() {
        let values =
            read(&TABLE, &body(&json!({"prompt": "fox", "steps": null, "seed": 17454220438242315174u64}))).unwrap();
        assert_eq!(values.integer::<u32>("steps"), Some(28));
        assert_eq!(values.integer::<u64>("seed"), Some(17454220438242315174));
        assert_eq!(
            read(&TABLE, &body(&json!({"prompt": "fox", "steps": 28.0}))).unwrap().integer::<u32>("steps"),
            Some(28)
        );
    }

    #[test]
    fn every_problem_is_named() {
        let Err(Fault::Invalid(problems)) = read(
            &TABLE,
            &body(&json!({"num_inference_steps": 51, "guidance": "x", "sync": 3, "megapixels": "2", "seed": -1})),
        ) else {
            panic!("taken");
        };
        let named: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), &problem.rule)).collect();
        assert_eq!(named[0], ("prompt", &Rule::Missing));
        assert_eq!(named[1], ("num_inference_steps", &Rule::AtMost(50.0)));
        assert_eq!(named[2], ("guidance", &Rule::Number));
        assert_eq!(named[3], ("sync", &Rule::Flag));
        assert_eq!(named[4].0, "megapixels");
        assert_eq!(named[5], ("seed", &Rule::AtLeast(0.0)));
    }
}
