//! What a secret looks like where no key names it: patterns over text and over bytes that are no text.
//!
//! The `regex` crate takes time linear in the text for one match. Patterns of ours consume what they look at, so that all matches of a text
//! take linear time too; for those of others the number of matches is bounded, and what lies behind the last one is masked whole.
//!
//! A row is asked as a whole first, by one automaton ([`Patterns::may_hold`]): most rows hold no secret, and then none of its parts is looked at.

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use regex_syntax::ParserBuilder;

use crate::error::{CoreError, ErrorKind};

/// The patterns that can be chosen by name, but for `key_value`, which is made of the keys.
const BUILT_IN: [(&str, &str); 8] = [
    ("bearer", r"(?i)bearer[ \t]+(?P<s>[a-z0-9._~+/-]{16,}=*)|basic[ \t]+(?P<t>[a-z0-9+/]{16,}={0,2})"),
    ("aws_key", r"(?:AKIA|ASIA|AROA|AIDA|ANPA|ANVA|AGPA)[A-Z0-9]{16}"),
    ("jwt", r"eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]+){1,4}\.?"),
    (
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-[^-])*(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    ("url_password", r#"[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@"'<>]*:(?P<s>[^/\s"'<>]+)@"#),
    (
        "provider_token",
        r"(?:gh[oprsu]_|github_pat_|glpat-|xox[abeoprs]-|npm_|hf_|sk-|[rs]k_live_|[rs]k_test_|whsec_|auth_|AIza|dop_v1_|pypi-)[A-Za-z0-9_-]{20,}",
    ),
    ("email", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
    ("key_value", ""),
];

const MAX_PROGRAM_BYTES: usize = 4 << 20;
const MAX_OWN_PROGRAM_BYTES: usize = 1 << 20;
/// Text that matches of one pattern that is not ours may make us walk over, for one value.
const MOST_WALKED_BYTES: usize = 256 << 20;
const LEAST_MATCHES: usize = 16;

/// The names that can be chosen.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

struct Pattern {
    /// Index into [`Patterns::names`].
    rule: usize,
    regex: Regex,
    ours: bool,
}

/// What has been found in a text: where, and by which rule.
pub struct Found {
    /// The secret.
    pub range: Range<usize>,
    /// Index into [`Patterns::names`].
    pub rule: usize,
}

/// Compiled patterns.
pub struct Patterns {
    names: Vec<String>,
    text: Vec<Pattern>,
    any_text: RegexSet,
    /// What has no match of this has no match of any pattern, in none of its parts; None where that cannot be said.
    sieve: Option<RegexSet>,
    /// What is looked for in bytes beside the others: keys and values of msgpack and protobuf.
    binary: Option<Pattern>,
}

impl Patterns {
    /// `chosen` are built-in names, `own` names with expressions; `keys` are what `key_value` looks for, and `key_anywhere` matches wherever
    /// the name of an attribute may be one of a secret.
    pub fn new(chosen: &[String], own: &[(String, String)], keys: &[String], key_anywhere: Option<&str>) -> Result<Self, CoreError> {
        let wrong = |detail: String| CoreError::new(ErrorKind::ConfigInvalid, 0, detail);
        let mut sources: Vec<(&str, Vec<String>, bool)> = Vec::new();
        let mut binary = None;
        for name in chosen {
            let Some((name, source)) = BUILT_IN.iter().find(|(known, _)| known == name) else {
                return Err(wrong(format!("no pattern {name:?}; there are {}", names().collect::<Vec<_>>().join(", "))));
            };
            match (*name, key_alternatives(keys)) {
                ("key_value", None) => {}
                ("key_value", Some(alternatives)) => {
                    sources.push((name, key_value(&alternatives).to_vec(), true));
                    binary = Some((sources.len() - 1, in_binary(&alternatives)));
                }
                _ => sources.push((name, vec![(*source).to_owned()], true)),
            }
        }
        for (name, source) in own {
            sources.push((name, vec![source.clone()], false));
        }
        let compiled = |source: &str, ours: bool| {
            let limit = if ours { MAX_PROGRAM_BYTES } else { MAX_OWN_PROGRAM_BYTES };
            // Bytes that are no UTF-8 are searched too; without Unicode classes the automata stay small.
            RegexBuilder::new(source).unicode(false).size_limit(limit).dfa_size_limit(limit).build()
        };
        let mut text = Vec::new();
        for (rule, (name, expressions, ours)) in sources.iter().enumerate() {
            for expression in expressions {
                let regex = compiled(expression, *ours).map_err(|error| wrong(format!("pattern {name}: {error}")))?;
                if regex.is_match(b"") {
                    return Err(wrong(format!("pattern {name} matches the empty text, and so everything")));
                }
                text.push(Pattern { rule, regex, ours: *ours });
            }
        }
        let binary = match binary {
            Some((rule, source)) => {
                let regex = compiled(&source, true).map_err(|error| wrong(format!("pattern key_value: {error}")))?;
                Some(Pattern { rule, regex, ours: true })
            }
            None => None,
        };
        let together = |sources: &[&str]| {
            let limit = 4 * MAX_PROGRAM_BYTES;
            RegexSetBuilder::new(sources).unicode(false).size_limit(limit).dfa_size_limit(limit).build()
        };
        let mut all: Vec<&str> = text.iter().map(|pattern| pattern.regex.as_str()).collect();
        let any_text = together(&all).map_err(|error| wrong(format!("the patterns together: {error}")))?;
        let whole = all.iter().all(|source| holds_for_the_whole(source));
        all.extend(key_anywhere);
        // Where it is too large each value is looked at by itself.
        let sieve = if whole { together(&all).ok() } else { None };
        Ok(Self { sieve, names: sources.iter().map(|(name, ..)| (*name).to_owned()).collect(), text, any_text, binary })
    }

    /// The names of the rules.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether any part of `data` can be a secret, or the name of one.
    pub fn may_hold(&self, data: &[u8]) -> bool {
        self.sieve.as_ref().is_none_or(|sieve| sieve.is_match(data))
    }

    /// The secrets of a text, in order and apart from each other.
    pub fn find(&self, text: &[u8], binary: bool) -> Vec<Found> {
        let mut found = Vec::new();
        if self.any_text.is_match(text) {
            for index in self.any_text.matches(text) {
                find_all(&self.text[index], text, &mut found);
            }
        }
        if let (true, Some(pattern)) = (binary, &self.binary) {
            find_all(pattern, text, &mut found);
        }
        found.sort_by_key(|one: &Found| (one.range.start, one.range.end));
        found.dedup_by(|later, earlier| {
            let meets = later.range.start < earlier.range.end;
            if meets {
                earlier.range.end = earlier.range.end.max(later.range.end);
            }
            meets
        });
        found
    }
}

/// Whether a pattern that matches a part of some bytes matches the whole too: one that looks at what is around (`^`, `$`, `\b`) may not.
fn holds_for_the_whole(source: &str) -> bool {
    let parsed = ParserBuilder::new().unicode(false).utf8(false).build().parse(source);
    parsed.is_ok_and(|parsed| parsed.properties().look_set().is_empty())
}

fn find_all(pattern: &Pattern, text: &[u8], found: &mut Vec<Found>) {
    let most = if pattern.ours { usize::MAX } else { LEAST_MATCHES + MOST_WALKED_BYTES / text.len().max(1) };
    for (number, captures) in pattern.regex.captures_iter(text).enumerate() {
        let Some(whole) = captures.get(0).filter(|whole| !whole.is_empty()) else { continue };
        if number == most {
            found.push(Found { range: whole.start()..text.len(), rule: pattern.rule });
            return;
        }
        // A group that took part is the secret; without one the whole match is.
        let secret = captures.iter().skip(1).flatten().next().unwrap_or(whole);
        if !secret.is_empty() && !says_nothing(secret.as_bytes()) {
            found.push(Found { range: secret.range(), rule: pattern.rule });
        }
    }
}

/// Values that stand where a secret would and are none.
fn says_nothing(value: &[u8]) -> bool {
    const NOTHING: [&[u8]; 6] = [b"null", b"none", b"nil", b"true", b"false", b"undefined"];
    value.iter().all(|byte| *byte == b'*') || NOTHING.iter().any(|nothing| value.eq_ignore_ascii_case(nothing))
}

/// The keys as alternatives, their words joined in any way; None where there are none.
fn key_alternatives(keys: &[String]) -> Option<String> {
    let words = |key: &String| {
        let parts: Vec<_> = key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()).collect();
        (!parts.is_empty()).then(|| parts.join("[ _.-]?"))
    };
    let alternatives: Vec<_> = keys.iter().filter_map(words).collect();
    (!alternatives.is_empty()).then(|| alternatives.join("|"))
}

/// `key: value`, `"key": "value"` (also escaped), `key=value`, `--key value`, and header lines, which are secret to their end.
fn key_value(keys: &str) -> [String; 3] {
    let sign = r#"\\{0,8}["']?[ \t]{0,8}(?:=>|:=|[:=]|%3D)[ \t]{0,8}"#;
    [
        format!(
            r#"(?is)(?:{keys}){sign}(?:\\{{1,8}}["'](?P<a>[^"'\\]+)|"(?P<b>(?:[^"\\]|\\.)+)|'(?P<c>(?:[^'\\]|\\.)+)|(?P<d>[^\s"'`,;&|<>(){{}}\[\]\\]+))"#
        ),
        format!(r#"(?i)--(?:[a-z0-9]+-)*(?:{keys})[ \t]+["']?(?P<a>[^\s"'-][^\s"']*)"#),
        format!(r#"(?i)(?:authorization|set-cookie|cookie){sign}["']?(?P<a>[^\r\n"'\\]+)"#),
    ]
}

/// A key of msgpack or protobuf, and what is printable behind the bytes that say how long it is.
fn in_binary(keys: &str) -> String {
    let shown = r"(?:[\x20-\x7e]|[\xc2-\xf4][\x80-\xbf]{1,3})";
    format!(r"(?is)(?:{keys})[\x00-\x1f\x80-\xff](?P<a>(?:.{{0,4}}[\x00-\x1f\x80-\xff])?{shown}+)")
}
