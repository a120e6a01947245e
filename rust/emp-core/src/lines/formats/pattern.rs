//! A user's own pattern: its named groups are the fields.

use regex::bytes::{Regex, RegexBuilder};

use super::Found;
use crate::lines::Fields;
use crate::normalize::json::{put_str, to_msgpack};
use crate::normalize::severity;

/// What a compiled pattern may take.
const MOST_COMPILED_BYTES: usize = 1 << 20;

/// A compiled pattern; its time is linear in the line's length.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    /// By group: its name.
    groups: Vec<(usize, Box<[u8]>)>,
}

impl Pattern {
    /// Compiles a pattern; the error says what is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let regex = compile(pattern)?;
        let groups: Vec<_> = regex.capture_names().enumerate().filter_map(|(at, name)| Some((at, Box::from(name?.as_bytes())))).collect();
        if groups.is_empty() {
            return Err("the pattern has no named group such as (?P<message>.*)".into());
        }
        Ok(Self { regex, groups })
    }

    /// The fields of a line; None where it does not match.
    pub fn parse<'a>(&self, line: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
        let found = self.regex.captures(line)?;
        let mut result = Found { message: None, severity: 0 };
        let mut value = Vec::new();
        for (at, name) in &self.groups {
            let Some(text) = found.get(*at).map(|group| group.as_bytes()) else { continue };
            match &**name {
                b"message" => result.message = Some(text),
                name => {
                    if matches!(name, b"level" | b"severity") {
                        result.severity = severity::of_text(text);
                    }
                    value.clear();
                    let number = matches!(text.first(), Some(b'-' | b'0'..=b'9')) && text.len() <= 17;
                    if !number || to_msgpack(text, &mut value).is_err() {
                        put_str(&mut value, text);
                    }
                    fields.raw(name, &value);
                }
            }
        }
        // What the pattern leaves out of a line is not lost: without a group for the message the line is it.
        result.message = result.message.or(Some(line));
        Some(result)
    }
}

/// Compiles a pattern without groups of meaning.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(MOST_COMPILED_BYTES).dfa_size_limit(2 * MOST_COMPILED_BYTES).unicode(false).build();
    let built = match built {
        Err(regex::Error::Syntax(_)) => {
            RegexBuilder::new(pattern).size_limit(MOST_COMPILED_BYTES).dfa_size_limit(2 * MOST_COMPILED_BYTES).build()
        }
        built => built,
    };
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the pattern is too large when compiled".into(),
        // The library draws the place over several lines; the last one says what it is.
        error => error.to_string().lines().last().unwrap_or_default().trim().replacen("error: ", "the pattern cannot be read: ", 1),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::json;
    use super::*;

    #[test]
    fn named_groups_are_fields_and_the_message_is_the_message() {
        let pattern = Pattern::new(r"^(?P<level>\w+)/(?<job_id>\S+) (?P<took>\d+)ms(?: (?P<note>x+))? (?P<message>.*)$").unwrap();
        let mut fields = Fields::default();
        let found = pattern.parse("WARN/job-7 35ms it is 日本".as_bytes(), &mut fields).unwrap();
        assert_eq!(found.message, Some("it is 日本".as_bytes()));
        assert_eq!(json(&mut fields), r#"{"level":"WARN","job_id":"job-7","took":35}"#);
        assert!(pattern.parse(b"other", &mut fields).is_none());
        let pattern = Pattern::new(r"id=(?P<id>\d+)").unwrap();
        assert_eq!(pattern.parse(b"x id=7 y", &mut fields).unwrap().message, Some(&b"x id=7 y"[..]));
    }

    #[test]
    fn a_pattern_that_cannot_be_used_says_why() {
        for (pattern, word) in
            [("(?P<a>", "unclosed"), ("abc", "named group"), (r"(?P<a>\1)", "backreferences"), (r"(?P<a>(x{1000}){1000})", "too large")]
        {
            let why = Pattern::new(pattern).unwrap_err();
            assert!(why.contains(word), "{pattern}: {why}");
        }
    }

    #[test]
    fn a_pattern_that_would_backtrack_takes_linear_time() {
        let pattern = Pattern::new(r"^(?P<a>(a+)+)$").unwrap();
        let line = [vec![b'a'; 200_000], b"!".to_vec()].concat();
        assert!(pattern.parse(&line, &mut Fields::default()).is_none());
    }
}
