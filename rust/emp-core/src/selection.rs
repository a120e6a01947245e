//! Which rows an exporter sends: `only:` and `except:` compiled, proved by a block's header or applied to rows.

use serde::Deserialize;
use std::collections::BTreeMap;

use crate::batch::{Batch, Signal, attributes_field, tag_of, text_attribute};
use crate::block::Header;
use crate::error::{CoreError, ErrorKind};
use crate::json_lines::value::value_text;
use crate::normalize::severity;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::resource;
use crate::otlp::value::for_each_pair;
use crate::otlp::wire::{Reader, WireError};

/// How much of a block matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Every row.
    All,
    /// No row.
    None,
    /// The header does not say, or some rows do.
    Some,
}

impl Match {
    fn of_bool(matches: bool) -> Self {
        if matches { Self::All } else { Self::None }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, Self::All) => Self::All,
            _ => Self::Some,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::All => Self::None,
            Self::None => Self::All,
            Self::Some => Self::Some,
        }
    }

    /// Over the distinct values that a header lists; None: they were too many to list.
    fn of_listed<T>(values: Option<&[T]>, mut matches: impl FnMut(&T) -> bool) -> Self {
        let Some(values) = values else { return Self::Some };
        let matching = values.iter().filter(|value| matches(value)).count();
        match matching {
            0 => Self::None,
            _ if matching == values.len() => Self::All,
            _ => Self::Some,
        }
    }
}

/// One rule: every condition given must hold, any of its values will do.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RuleConfig {
    signals: Vec<Signal>,
    tags: Vec<String>,
    min_severity: Option<String>,
    services: Vec<String>,
    attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Rule {
    signals: Vec<Signal>,
    tags: Vec<TagPattern>,
    /// 0: any row, also one without severity.
    min_severity: u8,
    services: Vec<String>,
    attributes: Vec<(String, String)>,
}

impl Rule {
    fn compile(json: &str) -> Result<Self, CoreError> {
        let invalid = |detail: String| CoreError::new(ErrorKind::ConfigInvalid, 0, detail);
        let config: RuleConfig = serde_json::from_str(json).map_err(|error| invalid(format!("a selection cannot be read: {error}")))?;
        let min_severity = match &config.min_severity {
            None => 0,
            Some(level) => match severity::of_text(level.as_bytes()) {
                0 => return Err(invalid(format!("min_severity: {level:?} is no level; use trace, debug, info, warn, error or fatal"))),
                number => number,
            },
        };
        Ok(Self {
            signals: config.signals,
            tags: config.tags.iter().map(|tag| TagPattern::new(tag)).collect(),
            min_severity,
            services: config.services,
            attributes: config.attributes.into_iter().collect(),
        })
    }

    fn matches_tag(&self, tag: &str) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|pattern| pattern.matches(tag))
    }

    fn matches_service(&self, service: &str) -> bool {
        self.services.is_empty() || self.services.iter().any(|known| known == service)
    }

    fn matches_signal(&self, signal: Signal) -> bool {
        self.signals.is_empty() || self.signals.contains(&signal)
    }

    fn of_header(&self, header: &Header) -> Match {
        let mut result = Match::of_bool(self.matches_signal(header.signal));
        if !self.tags.is_empty() {
            result = result.and(Match::of_listed(header.tags.as_deref(), |tag| self.matches_tag(tag)));
        }
        if !self.services.is_empty() {
            result = result.and(Match::of_listed(header.services.as_deref(), |service| self.matches_service(service)));
        }
        if self.min_severity > 0 {
            result = result.and(Match::of_listed(Some(&header.severities), |severity| *severity >= self.min_severity));
        }
        if !self.attributes.is_empty() {
            result = result.and(Match::Some);
        }
        result
    }

    fn of_rows(&self, batch: &Batch) -> Result<Vec<bool>, CoreError> {
        if !self.matches_signal(batch.signal) {
            return Ok(vec![false; batch.len()]);
        }
        let scopes: Vec<bool> =
            batch.scopes.iter().map(|scope| self.matches_tag(&String::from_utf8_lossy(tag_of(scope).unwrap_or_default()))).collect();
        let resources: Vec<bool> = batch
            .resources
            .iter()
            .map(|entry| {
                let service = string_attribute(&entry.message, resource::ATTRIBUTES, b"service.name").unwrap_or_default();
                self.matches_service(&String::from_utf8_lossy(service))
            })
            .collect();
        let mut matches: Vec<bool> = (0..batch.len())
            .map(|row| {
                scopes[batch.columns.scope[row] as usize]
                    && resources[batch.columns.resource[row] as usize]
                    && (self.min_severity == 0 || batch.columns.severity_number[row] >= self.min_severity)
            })
            .collect();
        for (key, value) in &self.attributes {
            let of_resource: Vec<bool> = batch
                .resources
                .iter()
                .map(|entry| text_attribute(&entry.message, key.as_bytes()).is_some_and(|text| text == value.as_bytes()))
                .collect();
            for (row, matches) in matches.iter_mut().enumerate().filter(|(_, matches)| **matches) {
                *matches =
                    row_has(batch, row, key.as_bytes(), value.as_bytes())?.unwrap_or(of_resource[batch.columns.resource[row] as usize]);
            }
        }
        Ok(matches)
    }
}

/// Whether the row's attribute has a value as text; None where the row lacks it.
fn row_has(batch: &Batch, row: usize, key: &[u8], value: &[u8]) -> Result<Option<bool>, CoreError> {
    let Some(number) = attributes_field(batch.signal) else { return Ok(None) };
    let mut found = None;
    for_each_pair(Reader::new(batch.message(row)), number, |pair| {
        if pair.key == key {
            found = Some(value_text(pair.value)?.is_some_and(|text| *text == *value));
        }
        Ok::<(), WireError>(())
    })
    .map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
    Ok(found)
}

/// A compiled `only:` / `except:`; without either it selects everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    only: Option<Rule>,
    except: Option<Rule>,
}

impl Selection {
    /// Compiles the JSON of the configuration's `SelectionConfig`s.
    pub fn new(only: Option<&str>, except: Option<&str>) -> Result<Self, CoreError> {
        Ok(Self { only: only.map(Rule::compile).transpose()?, except: except.map(Rule::compile).transpose()? })
    }

    /// What a header proves; `Some` means that the block has to be opened.
    pub fn of_header(&self, header: &Header) -> Match {
        let only = self.only.as_ref().map_or(Match::All, |rule| rule.of_header(header));
        let except = self.except.as_ref().map_or(Match::All, |rule| rule.of_header(header).not());
        only.and(except)
    }

    /// Which rows are selected; None: all of them.
    pub fn of_rows(&self, batch: &Batch) -> Result<Option<Vec<bool>>, CoreError> {
        let mut selected = vec![true; batch.len()];
        if let Some(rule) = &self.only {
            selected = rule.of_rows(batch)?;
        }
        if let Some(rule) = &self.except {
            for (selected, excepted) in selected.iter_mut().zip(rule.of_rows(batch)?) {
                *selected &= !excepted;
            }
        }
        Ok((!selected.iter().all(|selected| *selected)).then_some(selected))
    }
}

/// A Fluentd tag pattern: parts between dots, `*` matches within a part, `**` any number of parts (`a.**` matches `a` too).
#[derive(Clone, Debug)]
pub(crate) struct TagPattern {
    parts: Vec<String>,
}

impl TagPattern {
    pub(crate) fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('.').map(str::to_owned).collect() }
    }

    pub(crate) fn matches(&self, tag: &str) -> bool {
        let parts: Vec<&str> = if tag.is_empty() { Vec::new() } else { tag.split('.').collect() };
        wildcard(
            &self.parts,
            &parts,
            |pattern| pattern == "**",
            |pattern, part| wildcard(pattern.as_bytes(), part.as_bytes(), |byte| *byte == b'*', |pattern, byte| pattern == byte),
        )
    }
}

/// Matches a sequence, where some patterns take any number of items: the usual walk with one point of return, so no pattern is slow.
pub(crate) fn wildcard<P, T>(patterns: &[P], items: &[T], is_any: impl Fn(&P) -> bool, matches: impl Fn(&P, &T) -> bool) -> bool {
    let (mut pattern, mut item) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while item < items.len() {
        if pattern < patterns.len() && is_any(&patterns[pattern]) {
            retry = Some((pattern, item));
            pattern += 1;
        } else if pattern < patterns.len() && matches(&patterns[pattern], &items[item]) {
            pattern += 1;
            item += 1;
        } else if let Some((any, from)) = retry {
            retry = Some((any, from + 1));
            (pattern, item) = (any + 1, from + 1);
        } else {
            return false;
        }
    }
    patterns[pattern..].iter().all(is_any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_as_in_fluentd() {
        for (pattern, tag, matches) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.**", "a", true),
            ("a.**", "a.b.c", true),
            ("**", "", true),
            ("**.c", "a.b.c", true),
            ("**.c", "a.b.cd", false),
            ("app*.x", "app-one.x", true),
            ("*", "a", true),
            ("*", "a.b", false),
        ] {
            assert_eq!(TagPattern::new(pattern).matches(tag), matches, "{pattern} on {tag}");
        }
    }
}
