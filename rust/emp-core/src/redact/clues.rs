//! What has to be somewhere in a text for a pattern of ours to match in it: asked before the pattern, over a whole batch at once.
//!
//! A clue is a shape of four bytes ([`Fingerprints`]) and a look at what is around it. It may be found where the pattern has no match, never
//! the other way round, and what is a clue in a part of some bytes is one in the whole of them. A look is bounded, or ends at what the next
//! look begins behind, so that a text of nothing but beginnings takes linear time too.

use super::fingerprint::{ByteSet, Fingerprints, Shape, WIDTH};

/// How far a look goes where nothing else ends it; what is longer counts as found.
const MOST_LOOKED_AT: usize = 512;

/// What is around a shape.
#[derive(Clone, Debug)]
enum Around {
    /// The last letters of a name; before them the others, words joined or not, and behind them a sign and a value, or `--name value`.
    Name {
        words: Vec<Vec<u8>>,
        letters: usize,
    },
    /// A text (in one case or any), blanks behind it where there must be some, then so many bytes of a kind.
    Beginning {
        text: &'static [u8],
        any_case: bool,
        blanks: bool,
        least: usize,
        kind: fn(u8) -> bool,
    },
    /// `://`, with a user and a password, or a user that is a key, before an `@`.
    UrlPassword,
    SentryKey,
    /// `eyJ…` and a dot.
    Jwt,
    /// `@` and a domain.
    Email,
    /// Digits, as many as a card has.
    Card,
}

/// One clue, and the pattern that it is one for.
struct Clue {
    /// A bit each.
    patterns: u64,
    quick: Quick,
    around: Around,
}

/// The places of a shape that hold one byte, or one letter in any case, all at once.
struct Quick {
    mask: u32,
    any_case: u32,
    wanted: u32,
}

impl Quick {
    fn new(shape: &Shape) -> Self {
        let of = |part: fn((u8, u8)) -> u8| u32::from_le_bytes(shape.map(|set| set.one_byte().map_or(0, part)));
        Self { mask: of(|_| 0xff), any_case: of(|(_, any_case)| any_case), wanted: of(|(byte, _)| byte) }
    }

    #[inline]
    fn may_be(&self, word: u32) -> bool {
        (word | self.any_case) & self.mask == self.wanted
    }
}

/// All clues of the patterns of ours.
pub struct Clues {
    fingerprints: Fingerprints,
    /// The clues of each bucket.
    buckets: Vec<Vec<Clue>>,
    /// A bit for each pattern that has clues.
    all: u64,
}

/// Collects clues.
#[derive(Default)]
pub struct CluesBuilder {
    shapes: Vec<Shape>,
    clues: Vec<Clue>,
}

impl CluesBuilder {
    fn push(&mut self, patterns: u64, shape: Shape, around: Around) {
        self.shapes.push(shape);
        self.clues.push(Clue { patterns, quick: Quick::new(&shape), around });
    }

    /// The name of a secret, as words that may be joined by one sign, before a sign and a value.
    pub fn name(&mut self, patterns: u64, words: &[String]) {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.to_ascii_lowercase().into_bytes()).collect();
        let Some(last) = words.last().filter(|word| !word.is_empty()) else { return };
        let letters = last.len().min(WIDTH - 1);
        let mut shape = [ByteSet::ANY; WIDTH];
        for (set, letter) in shape.iter_mut().zip(&last[last.len() - letters..]) {
            *set = ByteSet::letter(*letter);
        }
        shape[letters] = ByteSet::of(|byte| is_blank(byte) || b"\\\"':=%".contains(&byte));
        self.push(patterns, shape, Around::Name { words, letters });
    }

    /// A text of three bytes or more, then at least so many bytes of a kind; `blanks`: with blanks between.
    fn beginning(&mut self, patterns: u64, text: &'static str, any_case: bool, blanks: bool, least: usize, kind: fn(u8) -> bool) {
        let text = text.as_bytes();
        let mut shape = [ByteSet::ANY; WIDTH];
        for (set, byte) in shape.iter_mut().zip(text) {
            *set = if any_case { ByteSet::letter(*byte) } else { ByteSet::byte(*byte) };
        }
        if text.len() < WIDTH && least > 0 {
            shape[text.len()] = if blanks { ByteSet::of(is_blank) } else { ByteSet::of(kind) };
        }
        self.push(patterns, shape, Around::Beginning { text, any_case, blanks, least, kind });
    }

    /// The clues of a built-in pattern but for `key_value`; false where there are none by this name.
    pub fn built_in(&mut self, pattern: usize, name: &str) -> bool {
        let pattern = 1 << pattern;
        match name {
            "bearer" => {
                self.beginning(pattern, "bearer", true, true, 16, |byte| is_word(byte) || b".~+/-".contains(&byte));
                self.beginning(pattern, "basic", true, true, 16, |byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
            }
            "aws_key" => {
                for text in ["AKIA", "ASIA", "AROA", "AIDA", "ANPA", "ANVA", "AGPA"] {
                    self.beginning(pattern, text, false, false, 16, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
                }
            }
            "jwt" => {
                let shape = [ByteSet::byte(b'e'), ByteSet::byte(b'y'), ByteSet::byte(b'J'), ByteSet::of(is_token)];
                self.push(pattern, shape, Around::Jwt);
            }
            "private_key" => self.beginning(pattern, "-BEGIN ", false, false, 0, |_| true),
            "url_password" | "sentry_key" => {
                let shape = [ByteSet::byte(b':'), ByteSet::byte(b'/'), ByteSet::byte(b'/'), ByteSet::ANY];
                let url_password = name == "url_password";
                self.push(pattern, shape, if url_password { Around::UrlPassword } else { Around::SentryKey });
                if !url_password {
                    for text in ["sntrys_", "sntryu_"] {
                        self.beginning(pattern, text, false, false, 20, |byte| is_token(byte) || b"+/=".contains(&byte));
                    }
                }
            }
            "provider_token" => {
                for text in super::patterns::TOKEN_BEGINNINGS {
                    self.beginning(pattern, text, false, false, 20, is_token);
                }
            }
            "email" => {
                let shape = [ByteSet::of(is_local), ByteSet::byte(b'@'), ByteSet::of(is_host), ByteSet::ANY];
                self.push(pattern, shape, Around::Email);
            }
            "card_number" => {
                let (digit, more) = (|byte: u8| byte.is_ascii_digit(), |byte: u8| byte.is_ascii_digit() || is_joint(byte));
                let shape = [ByteSet::of(|byte| (b'2'..=b'6').contains(&byte)), ByteSet::of(digit), ByteSet::of(more), ByteSet::of(more)];
                self.push(pattern, shape, Around::Card);
            }
            _ => return false,
        }
        true
    }

    /// Ready to be asked.
    pub fn build(self) -> Clues {
        let (fingerprints, numbers) = Fingerprints::new(&self.shapes);
        let mut buckets: Vec<Vec<Clue>> = (0..8).map(|_| Vec::new()).collect();
        let mut all = 0;
        for (clue, number) in self.clues.into_iter().zip(numbers) {
            all |= clue.patterns;
            buckets[number].push(clue);
        }
        Clues { fingerprints, buckets, all }
    }
}

impl Clues {
    /// The patterns that may match in a text, a bit each.
    pub fn patterns(&self, text: &[u8]) -> u64 {
        let mut found = 0;
        if self.all != 0 {
            self.fingerprints.scan(text, |at, buckets| {
                found |= self.at(text, at, buckets, found);
                if found == self.all { text.len() } else { at + 1 }
            });
        }
        found
    }

    /// Sets a flag for each part of `data` that may hold something; part i ends at `ends[i]`.
    pub fn mark(&self, data: &[u8], ends: &[u32], marks: &mut [bool]) {
        if self.all == 0 {
            return;
        }
        let (mut part, mut start) = (0, 0);
        self.fingerprints.scan(data, |at, buckets| {
            while part < ends.len() && ends[part] as usize <= at {
                start = ends[part] as usize;
                part += 1;
            }
            let Some(end) = ends.get(part).map(|end| *end as usize) else { return data.len() };
            if self.at(&data[start..end], at - start, buckets, 0) == 0 {
                return at + 1;
            }
            marks[part] = true;
            end
        });
    }

    /// The patterns, but for those of `but`, that have a clue at a place.
    fn at(&self, text: &[u8], at: usize, mut buckets: u8, but: u64) -> u64 {
        let mut found = 0;
        let word = word_at(text, at);
        while buckets != 0 {
            for clue in &self.buckets[buckets.trailing_zeros() as usize] {
                if clue.quick.may_be(word) && clue.patterns & !(but | found) != 0 && clue.around.holds(text, at) {
                    found |= clue.patterns;
                }
            }
            buckets &= buckets - 1;
        }
        found
    }
}

/// Four bytes; zeros behind the end.
#[inline]
fn word_at(text: &[u8], at: usize) -> u32 {
    let here = &text[at..];
    let short = || here.iter().take(WIDTH).rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    here.first_chunk::<WIDTH>().map_or_else(short, |bytes| u32::from_le_bytes(*bytes))
}

impl Around {
    fn holds(&self, text: &[u8], at: usize) -> bool {
        let here = &text[at..];
        match self {
            Self::Name { words, letters } => {
                name_ends(text, at + letters, words).is_some_and(|start| value_follows(text, start, at + letters))
            }
            Self::Beginning { text, any_case, blanks, least, kind } => {
                let Some(begun) = here.get(..text.len()) else { return false };
                let same = if *any_case { begun.eq_ignore_ascii_case(text) } else { begun == *text };
                if !same {
                    return false;
                }
                let behind = &here[text.len()..];
                let blank = if *blanks { run(behind, is_blank, MOST_LOOKED_AT) } else { 0 };
                (!*blanks || blank > 0) && (blank == MOST_LOOKED_AT || run(&behind[blank..], kind, *least) == *least)
            }
            Self::UrlPassword => {
                let Some(user) = after_scheme(here) else { return false };
                let name = run(user, |byte| is_authority(byte) && byte != b':' && byte != b'@', usize::MAX);
                let Some((b':', rest)) = user[name..].split_first() else { return false };
                let password = &rest[..run(rest, is_authority, usize::MAX)];
                password.iter().skip(1).any(|byte| *byte == b'@')
            }
            Self::SentryKey => {
                let Some(user) = after_scheme(here) else { return false };
                run(user, |byte| byte.is_ascii_hexdigit(), 33) == 32 && matches!(user.get(32), Some(b':' | b'@'))
            }
            Self::Jwt => {
                let rest = &here[3.min(here.len())..];
                let part = run(rest, is_token, MOST_LOOKED_AT);
                here.starts_with(b"eyJ")
                    && part >= 5
                    && (part == MOST_LOOKED_AT || matches!(rest[part..], [b'.', next, ..] if is_token(next)))
            }
            Self::Email => {
                let Some([local, b'@', rest @ ..]) = Some(here) else { return false };
                let name = run(rest, is_host, MOST_LOOKED_AT);
                is_local(*local) && (name == MOST_LOOKED_AT || name > 0 && matches!(rest[name..], [b'.', next, ..] if is_host(next)))
            }
            Self::Card => {
                here.iter()
                    .take_while(|byte| byte.is_ascii_digit() || is_joint(**byte))
                    .take(40)
                    .filter(|byte| byte.is_ascii_digit())
                    .count()
                    >= 13
            }
        }
    }
}

/// Where a name that ends at `end` begins; None where it is another.
fn name_ends(text: &[u8], end: usize, words: &[Vec<u8>]) -> Option<usize> {
    let mut at = end;
    for (number, word) in words.iter().rev().enumerate() {
        if number > 0 && at > 0 && b" _.-".contains(&text[at - 1]) {
            at -= 1;
        }
        let start = at.checked_sub(word.len())?;
        if !text[start..at].eq_ignore_ascii_case(word) {
            return None;
        }
        at = start;
    }
    Some(at)
}

/// Whether behind a name `start..end` there is a sign that a value follows, or before it are the dashes of an option, and behind it blanks.
fn value_follows(text: &[u8], start: usize, end: usize) -> bool {
    let mut rest = &text[end..];
    if rest.first().is_some_and(|byte| is_blank(*byte)) {
        // `--user-token value`: what is before the name are words with dashes between.
        let words =
            text[..start].iter().rev().take(MOST_LOOKED_AT).take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').count();
        if text[start - words..start].windows(2).any(|two| two == b"--") || words == MOST_LOOKED_AT {
            return true;
        }
    }
    rest = &rest[run(rest, |byte| byte == b'\\', 8)..];
    rest = &rest[run(rest, |byte| matches!(byte, b'"' | b'\''), 1)..];
    rest = &rest[run(rest, is_blank, 8)..];
    matches!(rest.first(), Some(b':' | b'=')) || rest.get(..3).is_some_and(|sign| sign.eq_ignore_ascii_case(b"%3D"))
}

/// What is behind `://`.
fn after_scheme(here: &[u8]) -> Option<&[u8]> {
    here.strip_prefix(b"://")
}

/// How many bytes of a kind there are at the beginning, at most `most`.
fn run(text: &[u8], kind: impl Fn(u8) -> bool, most: usize) -> usize {
    text.iter().take(most).take_while(|byte| kind(**byte)).count()
}

/// A blank of a line.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// White space, as regular expressions have it without Unicode.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_token(byte: u8) -> bool {
    is_word(byte) || byte == b'-'
}

fn is_local(byte: u8) -> bool {
    is_token(byte) || b".%+".contains(&byte)
}

fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// What may be between the digits of a card's number.
fn is_joint(byte: u8) -> bool {
    matches!(byte, b' ' | b'-')
}

/// A byte of a user or a password in a URL.
fn is_authority(byte: u8) -> bool {
    !is_space(byte) && !matches!(byte, b'/' | b'"' | b'\'' | b'<' | b'>')
}
