//! What a secret looks like where no key names it: patterns over text and over bytes that are no text.
//!
//! The `regex` crate takes time linear in the text for one match. Patterns of ours consume what they look at, so that all matches of a text
//! take linear time too; for those of others the number of matches is bounded, and what lies behind the last one is masked whole.
//!
//! Of ours only those are asked that [`Clues`] were found for, over a whole batch at once: most rows hold none.

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use regex_syntax::ParserBuilder;

use super::cards;
use super::clues::{Clues, CluesBuilder};
use crate::batch::Batch;
use crate::error::{CoreError, ErrorKind};

/// What tokens of known providers begin with.
pub const TOKEN_BEGINNINGS: [&str; 27] = [
    "gho_",
    "ghp_",
    "ghr_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxa-",
    "xoxb-",
    "xoxe-",
    "xoxo-",
    "xoxp-",
    "xoxr-",
    "xoxs-",
    "npm_",
    "hf_",
    "r8_",
    "sk-",
    "rk_live_",
    "sk_live_",
    "rk_test_",
    "sk_test_",
    "whsec_",
    "auth_",
    "AIza",
    "dop_v1_",
    "pypi-",
];

/// The patterns that can be chosen by name, but for `key_value`, which is made of the keys.
const BUILT_IN: [(&str, &str); 10] = [
    ("bearer", r"(?i)bearer[ \t]+(?P<s>[a-z0-9._~+/-]{16,}=*)|basic[ \t]+(?P<t>[a-z0-9+/]{16,}={0,2})"),
    ("aws_key", r"(?:AKIA|ASIA|AROA|AIDA|ANPA|ANVA|AGPA)[A-Z0-9]{16}"),
    ("jwt", r"eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]+){1,4}\.?"),
    (
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-[^-])*(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    ("url_password", r#"[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@"'<>]*:(?P<s>[^/\s"'<>]+)@"#),
    ("sentry_key", r"https?://(?P<s>[0-9a-fA-F]{32})[:@]|(?P<t>sntry[su]_[A-Za-z0-9_=+/-]{20,})"),
    ("provider_token", ""),
    ("email", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
    ("card_number", ""),
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
    finder: Finder,
}

enum Finder {
    Ours(Regex),
    /// Matches that are random letters and digits, and no words: `auth_request_handler_timeout` is no token.
    Random(Regex),
    Cards,
    Others(Regex),
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
    /// Those of ours, then those of others.
    text: Vec<Pattern>,
    ours: usize,
    clues: Clues,
    /// All of others together; None where there are none.
    others: Option<RegexSet>,
    /// What has no match of theirs as a whole has none in any of its parts.
    others_hold: bool,
    /// What is looked for in bytes beside the others: keys and values of msgpack and protobuf.
    binary: Option<Pattern>,
}

impl Patterns {
    /// `chosen` are built-in names, `own` names with expressions; `keys` are what `key_value` looks for.
    pub fn new(chosen: &[String], own: &[(String, String)], keys: &[String]) -> Result<Self, CoreError> {
        let mut out = Self {
            names: Vec::new(),
            text: Vec::new(),
            ours: 0,
            clues: CluesBuilder::default().build(),
            others: None,
            others_hold: true,
            binary: None,
        };
        let mut clues = CluesBuilder::default();
        for name in chosen {
            let Some((name, source)) = BUILT_IN.iter().find(|(known, _)| known == name) else {
                return Err(wrong(format!("no pattern {name:?}; there are {}", names().collect::<Vec<_>>().join(", "))));
            };
            out.add_built_in(name, source, keys, &mut clues)?;
        }
        out.ours = out.text.len();
        out.clues = clues.build();
        for (name, source) in own {
            out.add(name, Finder::Others(compiled(name, source, MAX_OWN_PROGRAM_BYTES)?));
            out.others_hold &= holds_for_the_whole(source);
        }
        if !own.is_empty() {
            let limit = 4 * MAX_PROGRAM_BYTES;
            let sources = own.iter().map(|(_, source)| source);
            let together = RegexSetBuilder::new(sources).unicode(false).size_limit(limit).dfa_size_limit(limit).build();
            out.others = Some(together.map_err(|error| wrong(format!("the patterns together: {error}")))?);
        }
        Ok(out)
    }

    fn add(&mut self, name: &str, finder: Finder) {
        self.names.push(name.to_owned());
        self.text.push(Pattern { rule: self.names.len() - 1, finder });
    }

    fn add_built_in(&mut self, name: &str, source: &str, keys: &[String], clues: &mut CluesBuilder) -> Result<(), CoreError> {
        let regex = |source: &str| compiled(name, source, MAX_PROGRAM_BYTES);
        match name {
            "key_value" => {
                let Some(alternatives) = key_alternatives(keys) else { return Ok(()) };
                let rule = self.names.len();
                self.names.push(name.to_owned());
                let [after_sign, option, header] = key_value(&alternatives);
                for words in keys.iter().map(|key| words(key)).filter(|words| !words.is_empty()) {
                    clues.name(0b11 << self.text.len(), &words);
                }
                for word in ["authorization", "cookie"] {
                    clues.name(0b100 << self.text.len(), &[word.to_owned()]);
                }
                for source in [after_sign, option, header] {
                    self.text.push(Pattern { rule, finder: Finder::Ours(regex(&source)?) });
                }
                self.binary = Some(Pattern { rule, finder: Finder::Ours(regex(&in_binary(&alternatives))?) });
                return Ok(());
            }
            "provider_token" => {
                self.add(name, Finder::Random(regex(&format!("(?:{})[A-Za-z0-9_-]{{20,}}", TOKEN_BEGINNINGS.join("|")))?));
            }
            "card_number" => self.add(name, Finder::Cards),
            _ => self.add(name, Finder::Ours(regex(source)?)),
        }
        clues.built_in(self.text.len() - 1, name);
        Ok(())
    }

    /// The names of the rules.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Sets a flag for each row that may hold a secret in its texts: what its keys name is not asked here.
    pub fn mark(&self, batch: &Batch, marks: &mut [bool]) {
        self.clues.mark(&batch.rows, &batch.row_end, marks);
        for (row, mark) in marks.iter_mut().enumerate() {
            *mark = *mark || self.others_may_hold(batch.message(row));
        }
    }

    /// Whether any text in `data` may hold a secret.
    pub fn may_hold(&self, data: &[u8]) -> bool {
        self.clues.patterns(data) != 0 || self.others_may_hold(data)
    }

    fn others_may_hold(&self, data: &[u8]) -> bool {
        self.others.as_ref().is_some_and(|others| !self.others_hold || others.is_match(data))
    }

    /// The secrets of a text, in order and apart from each other.
    pub fn find(&self, text: &[u8], binary: bool) -> Vec<Found> {
        let mut found = Vec::new();
        let mut asked = self.clues.patterns(text);
        while asked != 0 {
            find_all(&self.text[asked.trailing_zeros() as usize], text, &mut found);
            asked &= asked - 1;
        }
        if let Some(others) = self.others.as_ref().filter(|others| others.is_match(text)) {
            for index in others.matches(text) {
                find_all(&self.text[self.ours + index], text, &mut found);
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

fn wrong(detail: String) -> CoreError {
    CoreError::new(ErrorKind::ConfigInvalid, 0, detail)
}

/// Bytes that are no UTF-8 are searched too; without Unicode classes the automata stay small.
fn compiled(name: &str, source: &str, limit: usize) -> Result<Regex, CoreError> {
    let regex = RegexBuilder::new(source).unicode(false).size_limit(limit).dfa_size_limit(limit).build();
    let regex = regex.map_err(|error| wrong(format!("pattern {name}: {error}")))?;
    if regex.is_match(b"") {
        return Err(wrong(format!("pattern {name} matches the empty text, and so everything")));
    }
    Ok(regex)
}

/// Whether a pattern that matches a part of some bytes matches the whole too: one that looks at what is around (`^`, `$`, `\b`) may not.
fn holds_for_the_whole(source: &str) -> bool {
    let parsed = ParserBuilder::new().unicode(false).utf8(false).build().parse(source);
    parsed.is_ok_and(|parsed| parsed.properties().look_set().is_empty())
}

fn find_all(pattern: &Pattern, text: &[u8], found: &mut Vec<Found>) {
    let (regex, most, random) = match &pattern.finder {
        Finder::Ours(regex) => (regex, usize::MAX, false),
        Finder::Random(regex) => (regex, usize::MAX, true),
        Finder::Others(regex) => (regex, LEAST_MATCHES + MOST_WALKED_BYTES / text.len().max(1), false),
        Finder::Cards => return found.extend(cards::find(text).map(|range| Found { range, rule: pattern.rule })),
    };
    for (number, captures) in regex.captures_iter(text).enumerate() {
        let Some(whole) = captures.get(0).filter(|whole| !whole.is_empty()) else { continue };
        if number == most {
            found.push(Found { range: whole.start()..text.len(), rule: pattern.rule });
            return;
        }
        // A group that took part is the secret; without one the whole match is.
        let secret = captures.iter().skip(1).flatten().next().unwrap_or(whole);
        if !secret.is_empty() && !says_nothing(secret.as_bytes()) && (!random || is_random(secret.as_bytes())) {
            found.push(Found { range: secret.range(), rule: pattern.rule });
        }
    }
}

/// Words in one case, joined by signs, are a name of something; a token of twenty signs without a digit and a capital there is not.
fn is_random(token: &[u8]) -> bool {
    let begun = token.iter().position(|byte| matches!(byte, b'_' | b'-')).map_or(0, |at| at + 1);
    token[begun..].iter().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

/// Values that stand where a secret would and are none.
fn says_nothing(value: &[u8]) -> bool {
    const NOTHING: [&[u8]; 6] = [b"null", b"none", b"nil", b"true", b"false", b"undefined"];
    value.iter().all(|byte| *byte == b'*') || NOTHING.iter().any(|nothing| value.eq_ignore_ascii_case(nothing))
}

/// The words of a key's name.
fn words(key: &str) -> Vec<String> {
    key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The keys as alternatives, their words joined in any way; None where there are none.
fn key_alternatives(keys: &[String]) -> Option<String> {
    let alternatives: Vec<_> = keys.iter().map(|key| words(key).join("[ _.-]?")).filter(|key| !key.is_empty()).collect();
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

#[cfg(test)]
#[path = "patterns_tests.rs"]
mod tests;
