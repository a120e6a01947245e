//! One attribute condition: a key, where it is looked for, and which values match. Patterns know `*` alone: no pattern is slow.

use serde::Deserialize;

use crate::error::{CoreError, ErrorKind};
use crate::otlp::scan::{KeyValue, key_value};
use crate::otlp::value::{AnyValue, any_value, for_each_element};
use crate::otlp::wire::{Reader, WireError, for_each_field};
use crate::selection::wildcard;

/// Longer strings do not match a pattern: what a sender writes must not cost more than reading it.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Where an attribute is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On the span or its resource.
    #[default]
    Any,
    /// On the span.
    Span,
    /// On the resource.
    Resource,
}

/// An attribute condition as the configuration says it. Without a condition on the value any will do.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LeafConfig {
    /// The attribute.
    pub key: String,
    /// Where.
    #[serde(default, rename = "where")]
    pub place: Place,
    /// Strings, with `*` for any characters.
    #[serde(default)]
    pub values: Vec<String>,
    /// Numbers from here.
    pub min: Option<f64>,
    /// Numbers to here.
    pub max: Option<f64>,
    /// A bool.
    pub is_true: Option<bool>,
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub struct Leaf {
    key: Vec<u8>,
    place: Place,
    patterns: Vec<Vec<u8>>,
    range: Option<(f64, f64)>,
    is_true: Option<bool>,
}

impl Leaf {
    /// Compiles a condition.
    pub fn new(config: &LeafConfig) -> Result<Self, CoreError> {
        if config.key.is_empty() {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "an attribute needs a key"));
        }
        let range = (config.min.is_some() || config.max.is_some())
            .then(|| (config.min.unwrap_or(f64::NEG_INFINITY), config.max.unwrap_or(f64::INFINITY)));
        Ok(Self {
            key: config.key.clone().into_bytes(),
            place: config.place,
            patterns: config.values.iter().map(|value| value.clone().into_bytes()).collect(),
            range,
            is_true: config.is_true,
        })
    }

    /// Whether it is looked for on spans.
    pub fn on_spans(&self) -> bool {
        self.place != Place::Resource
    }

    /// Whether an encoded resource's attributes match.
    pub fn matches_resource(&self, resource: &[u8]) -> Result<bool, WireError> {
        let mut found = false;
        if self.place != Place::Span {
            for_each_field(Reader::new(resource), |field| {
                if field.number == crate::otlp::fields::resource::ATTRIBUTES {
                    found |= self.matches(&key_value(field.message())?)?;
                }
                Ok::<(), WireError>(())
            })?;
        }
        Ok(found)
    }

    /// Whether an attribute matches.
    #[inline]
    pub fn matches(&self, pair: &KeyValue<'_>) -> Result<bool, WireError> {
        if pair.key != self.key { Ok(false) } else { self.matches_value(pair.value.clone(), true) }
    }

    /// Of a list any element will do; a list within a list does not count.
    fn matches_value(&self, value: Reader<'_>, lists: bool) -> Result<bool, WireError> {
        let anything = self.patterns.is_empty() && self.range.is_none() && self.is_true.is_none();
        let number = |number: f64| self.range.is_some_and(|(min, max)| (min..=max).contains(&number));
        Ok(match any_value(value)? {
            _ if anything => true,
            AnyValue::String(text) => text.len() <= MAX_TEXT_BYTES && self.patterns.iter().any(|pattern| glob(pattern, text)),
            AnyValue::Bool(value) => self.is_true == Some(value),
            AnyValue::Int(value) => number(value as f64),
            AnyValue::Double(value) => number(value),
            AnyValue::Array(array) if lists => {
                let mut found = false;
                for_each_element(array, |element| {
                    found = found || self.matches_value(element, false)?;
                    Ok::<(), WireError>(())
                })?;
                found
            }
            _ => false,
        })
    }
}

/// Whether a text matches a pattern in which `*` stands for any bytes.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    if !pattern.contains(&b'*') {
        return pattern == text;
    }
    wildcard(pattern, text, |byte| *byte == b'*', |pattern, byte| pattern == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::fields::{list, resource};
    use crate::otlp::value::{Scalar, put_key_value, put_scalar};
    use crate::otlp::wire::{put_bytes, put_message};

    fn resource_with(scalar: Scalar<'_>) -> Vec<u8> {
        let (mut out, mut value) = (Vec::new(), Vec::new());
        put_scalar(&mut value, scalar);
        put_key_value(&mut out, resource::ATTRIBUTES, b"other", b"");
        put_key_value(&mut out, resource::ATTRIBUTES, b"key", &value);
        out
    }

    fn matches(config: LeafConfig, scalar: Scalar<'_>) -> bool {
        Leaf::new(&LeafConfig { key: "key".to_owned(), ..config }).unwrap().matches_resource(&resource_with(scalar)).unwrap()
    }

    #[test]
    fn strings_match_with_stars() {
        for (pattern, text, expected) in [
            ("acme", "acme", true),
            ("acme", "acme2", false),
            ("ac*", "acme", true),
            ("*me", "acme", true),
            ("a*m*", "acme", true),
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "a", false),
        ] {
            let config = LeafConfig { values: vec!["nothing".to_owned(), pattern.to_owned()], ..LeafConfig::default() };
            assert_eq!(matches(config, Scalar::String(text.as_bytes())), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn numbers_match_in_a_range_with_its_ends() {
        let range = |min, max| LeafConfig { min, max, ..LeafConfig::default() };
        assert!(matches(range(Some(500.0), None), Scalar::Int(500)));
        assert!(!matches(range(Some(500.0), None), Scalar::Int(499)));
        assert!(matches(range(None, Some(0.5)), Scalar::Double(0.5)));
        assert!(!matches(range(Some(0.0), Some(1.0)), Scalar::Double(f64::NAN)));
        assert!(!matches(range(Some(0.0), None), Scalar::String(b"5")));
    }

    #[test]
    fn bools_match_by_value_and_without_a_condition_any_value_does() {
        let is = |is| LeafConfig { is_true: Some(is), ..LeafConfig::default() };
        assert!(
            matches(is(true), Scalar::Bool(true)) && !matches(is(true), Scalar::Bool(false)) && matches(is(false), Scalar::Bool(false))
        );
        assert!(matches(LeafConfig::default(), Scalar::Bytes(b"")));
    }

    #[test]
    fn an_element_of_a_list_matches() {
        let mut list = Vec::new();
        for text in ["one", "two"] {
            put_message(&mut list, list::VALUES, |out| put_scalar(out, Scalar::String(text.as_bytes())));
        }
        let (mut message, mut value) = (Vec::new(), Vec::new());
        put_bytes(&mut value, crate::otlp::fields::any_value::ARRAY, &list);
        put_key_value(&mut message, resource::ATTRIBUTES, b"key", &value);
        let leaf =
            |text: &str| Leaf::new(&LeafConfig { key: "key".to_owned(), values: vec![text.to_owned()], ..LeafConfig::default() }).unwrap();
        assert!(leaf("two").matches_resource(&message).unwrap());
        assert!(!leaf("three").matches_resource(&message).unwrap());
    }

    #[test]
    fn the_place_restricts_where_a_key_is_looked_for() {
        let leaf = |place| Leaf::new(&LeafConfig { key: "key".to_owned(), place, ..LeafConfig::default() }).unwrap();
        let resource = resource_with(Scalar::Int(1));
        assert!(leaf(Place::Any).matches_resource(&resource).unwrap() && leaf(Place::Resource).matches_resource(&resource).unwrap());
        assert!(!leaf(Place::Span).matches_resource(&resource).unwrap());
        assert!(leaf(Place::Any).on_spans() && leaf(Place::Span).on_spans() && !leaf(Place::Resource).on_spans());
    }
}
