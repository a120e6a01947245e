//! Which rows a rule is for: every condition given must hold, any of its values will do. Tables are asked once a batch, rows only where
//! those do not decide. Expressions are those of Rust's `regex`: no text makes them slow.

use std::borrow::Cow;
use std::collections::BTreeMap;

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::batch::{Batch, Signal, attributes_field, tag_of, text_attribute};
use crate::error::{CoreError, ErrorKind};
use crate::json_lines::value::value_text;
use crate::normalize::severity;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::resource;
use crate::otlp::value::for_each_pair;
use crate::otlp::wire::{Reader, WireError};
use crate::sampling::attribute::glob;
use crate::selection::TagPattern;

const MAX_PROGRAM_BYTES: usize = 1 << 20;
/// Only the beginning of a longer text is looked at.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// The name of the body among `matches`.
const BODY: &str = "body";

/// The conditions as the configuration says them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConditionConfig {
    /// logs, traces, metrics; none: any.
    pub signals: Vec<Signal>,
    /// Fluent tags, with `*` and `**`.
    pub tags: Vec<String>,
    /// `service.name`s, with `*`.
    pub services: Vec<String>,
    /// From this level; rows without one do not match.
    pub min_severity: Option<String>,
    /// Up to this level; rows without one do not match.
    pub max_severity: Option<String>,
    /// Attribute of the row, else of its resource, to its value as text, with `*`.
    pub attributes: BTreeMap<String, String>,
    /// `body` or an attribute to an expression that is found in its text.
    pub matches: BTreeMap<String, String>,
}

/// Compiled conditions.
#[derive(Debug)]
pub struct Condition {
    signals: Vec<Signal>,
    tags: Vec<TagPattern>,
    services: Vec<String>,
    severities: Option<(u8, u8)>,
    texts: Vec<(String, Wanted)>,
}

#[derive(Debug)]
enum Wanted {
    Glob(String),
    Found(Regex),
}

impl Wanted {
    fn is_met(&self, text: &[u8]) -> bool {
        let text = &text[..text.len().min(MAX_TEXT_BYTES)];
        match self {
            Self::Glob(pattern) => glob(pattern.as_bytes(), text),
            Self::Found(regex) => regex.is_match(text),
        }
    }
}

impl Condition {
    /// Compiles conditions. CoreError (config_invalid) says what cannot be one.
    pub fn new(config: ConditionConfig) -> Result<Self, CoreError> {
        let invalid = |detail: String| CoreError::new(ErrorKind::ConfigInvalid, 0, detail);
        let level = |level: &Option<String>, whole: fn(u8) -> u8, unset: u8| match level {
            None => Ok(unset),
            Some(text) => match severity::of_text(text.as_bytes()) {
                0 => Err(invalid(format!("{text:?} is no level; use trace, debug, info, warn, error or fatal"))),
                number => Ok(whole(number)),
            },
        };
        // Each level has four numbers: debug is 5 to 8.
        let (least, most) =
            (level(&config.min_severity, |number| number, 1)?, level(&config.max_severity, |number| (number - 1) / 4 * 4 + 4, 24)?);
        let mut texts: Vec<(String, Wanted)> = config.attributes.into_iter().map(|(key, value)| (key, Wanted::Glob(value))).collect();
        for (key, source) in config.matches {
            let regex = RegexBuilder::new(&source).unicode(false).size_limit(MAX_PROGRAM_BYTES).dfa_size_limit(MAX_PROGRAM_BYTES).build();
            texts.push((key, Wanted::Found(regex.map_err(|error| invalid(format!("matches: {error}")))?)));
        }
        Ok(Self {
            signals: config.signals,
            tags: config.tags.iter().map(|tag| TagPattern::new(tag)).collect(),
            services: config.services,
            severities: (config.min_severity.is_some() || config.max_severity.is_some()).then_some((least, most)),
            texts,
        })
    }

    /// Which rows of a batch meet it.
    pub fn rows(&self, batch: &Batch) -> Result<Vec<bool>, CoreError> {
        if !self.signals.is_empty() && !self.signals.contains(&batch.signal) {
            return Ok(vec![false; batch.len()]);
        }
        let scopes: Vec<bool> = batch.scopes.iter().map(|entry| self.has_tag(tag_of(entry).unwrap_or_default())).collect();
        let resources: Vec<bool> = batch
            .resources
            .iter()
            .map(|entry| self.has_service(string_attribute(&entry.message, resource::ATTRIBUTES, b"service.name").unwrap_or_default()))
            .collect();
        let columns = &batch.columns;
        let mut rows: Vec<bool> = (0..batch.len())
            .map(|row| {
                let severity = columns.severity_number[row];
                scopes[columns.scope[row] as usize]
                    && resources[columns.resource[row] as usize]
                    && self.severities.is_none_or(|(least, most)| (least..=most).contains(&severity) && severity > 0)
            })
            .collect();
        for (key, wanted) in &self.texts {
            let of_resource: Vec<bool> = match key.as_str() {
                BODY => Vec::new(),
                key => batch
                    .resources
                    .iter()
                    .map(|entry| text_attribute(&entry.message, key.as_bytes()).is_some_and(|text| wanted.is_met(&text)))
                    .collect(),
            };
            for (row, met) in rows.iter_mut().enumerate().filter(|(_, met)| **met) {
                *met = if key == BODY {
                    batch.view(columns.body[row]).is_some_and(|text| wanted.is_met(text))
                } else {
                    let text = attribute_text(batch, row, key.as_bytes())?;
                    text.map_or(of_resource[columns.resource[row] as usize], |text| wanted.is_met(&text))
                };
            }
        }
        Ok(rows)
    }

    fn has_tag(&self, tag: &[u8]) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|pattern| pattern.matches(&String::from_utf8_lossy(tag)))
    }

    fn has_service(&self, service: &[u8]) -> bool {
        self.services.is_empty() || self.services.iter().any(|pattern| glob(pattern.as_bytes(), service))
    }
}

/// The text of a row's attribute; None where it lacks it.
fn attribute_text<'a>(batch: &'a Batch, row: usize, key: &[u8]) -> Result<Option<Cow<'a, [u8]>>, CoreError> {
    let Some(number) = attributes_field(batch.signal) else { return Ok(None) };
    let mut found = None;
    for_each_pair(Reader::new(batch.message(row)), number, |pair| {
        if pair.key == key {
            found = Some(value_text(pair.value)?.unwrap_or_default());
        }
        Ok::<(), WireError>(())
    })
    .map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
    Ok(found)
}
