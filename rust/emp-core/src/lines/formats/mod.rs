//! Formats of lines: from one line to fields, each a pure function of it.
//!
//! ```text
//!   line ──▶ runtime's wrapping off (docker, cri) ──▶ lines that belong together (multiline, exception)
//!        ──▶ ansi off ──▶ JSON (json) or text (Parser::text) ──▶ Fields
//! ```
//!
//! A format is `parse(line, times, fields)`: it writes what it finds into [`Fields`] and returns the message, or None where the line is not
//! of it. Nothing here keeps state but [`multiline`]'s machine; the file's state is in [`super::Source`].

pub mod ansi;
mod bracketed;
mod comfyui;
pub mod container;
mod cri;
mod docker;
pub mod exception;
pub mod json;
mod logfmt;
mod look;
pub mod multiline;
mod nginx;
pub mod pattern;
pub mod progress;
mod python;
mod stamp;
mod syslog;
#[cfg(test)]
mod testing;

use super::Fields;
use crate::normalize::time::TimeReader;
use crate::syslog::When;
use container::Part;
use pattern::Pattern;
use stamp::{Times, level, put_level, put_time};

/// How lines are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Each line by its own look.
    #[default]
    Auto,
    /// The line is the body.
    Plain,
    /// A JSON object a line.
    Json,
    /// `key=value`.
    Logfmt,
    /// Docker's json-file, and within it each line by its own look.
    Docker,
    /// Kubernetes' CRI, the same.
    Cri,
    /// RFC 3164 and 5424, as files have it.
    Syslog,
    /// nginx' and Apache's `combined`.
    NginxAccess,
    /// nginx' error log.
    NginxError,
    /// Python's `logging`.
    Python,
    /// `[timestamp] LEVEL: message`.
    Bracketed,
    /// ComfyUI's console.
    Comfyui,
    /// The user's own pattern.
    Regex,
}

/// The formats by name, as a configuration names them.
pub const NAMES: [(&str, Format); 13] = [
    ("auto", Format::Auto),
    ("plain", Format::Plain),
    ("json", Format::Json),
    ("logfmt", Format::Logfmt),
    ("docker", Format::Docker),
    ("cri", Format::Cri),
    ("syslog", Format::Syslog),
    ("nginx_access", Format::NginxAccess),
    ("nginx_error", Format::NginxError),
    ("python", Format::Python),
    ("bracketed", Format::Bracketed),
    ("comfyui", Format::Comfyui),
    ("regex", Format::Regex),
];

impl Format {
    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// Whether lines may be records in JSON.
    pub fn may_be_json(self) -> bool {
        matches!(self, Self::Auto | Self::Json | Self::Docker | Self::Cri | Self::Comfyui)
    }

    /// Whether a runtime's wrapping is looked for.
    pub fn may_be_wrapped(self) -> bool {
        matches!(self, Self::Auto | Self::Docker | Self::Cri)
    }
}

/// What a format found beside the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The message; None where it is among the fields.
    pub message: Option<&'a [u8]>,
    /// The severity number of the level; 0 without.
    pub severity: u8,
}

/// Reads the lines of one file.
#[derive(Debug)]
pub struct Parser {
    format: Format,
    times: Times,
    runtime_times: TimeReader,
    pattern: Option<Pattern>,
    syslog: crate::syslog::Parser,
    when: When,
}

impl Parser {
    /// A parser of a format; times without a zone are that many seconds east of UTC.
    pub fn new(format: Format, pattern: Option<Pattern>, utc_offset_s: i64) -> Self {
        let when = When { now_unix_nano: 0, utc_offset_s, most_ahead_s: When::FILE_AHEAD_S };
        let (runtime_times, syslog) = (TimeReader::default(), crate::syslog::Parser::default());
        Self { format, times: Times::new(utc_offset_s), runtime_times, pattern, syslog, when }
    }

    /// Sets when the following lines are read: some times leave out their year.
    pub fn set_now(&mut self, now_unix_nano: i64) {
        self.when.now_unix_nano = now_unix_nano;
    }

    /// What a runtime wrapped; None where the line is not wrapped.
    #[inline]
    pub fn wrapped<'a>(&mut self, line: &'a [u8]) -> Option<Part<'a>> {
        match (self.format, line.first()?) {
            (Format::Auto | Format::Docker, b'{') => docker::parse(line, &mut self.runtime_times),
            (Format::Auto | Format::Cri, b'0'..=b'9') if line.get(10) == Some(&b'T') && cri::may_be(line) => {
                cri::parse(line, &mut self.times)
            }
            _ => None,
        }
    }

    /// The fields of a line of text. None where it is of no format: it is the message then, and `fields` has nothing of use.
    #[inline]
    pub fn text<'a>(&mut self, line: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
        let times = &mut self.times;
        match self.format {
            Format::Auto | Format::Docker | Format::Cri => self.by_look(line, fields),
            Format::Plain | Format::Json => None,
            Format::Logfmt => logfmt::parse(line, times, fields),
            Format::Syslog => syslog::parse(line, &mut self.syslog, &self.when, fields),
            Format::NginxAccess => nginx::access(line, times, fields),
            Format::NginxError => nginx::error(line, times, fields),
            Format::Python => python::parse(line, times, fields),
            Format::Bracketed => bracketed::parse(line, times, fields),
            Format::Comfyui => comfyui::parse(line, times, fields).or_else(|| by_level(line, fields)),
            Format::Regex => self.pattern.as_ref().and_then(|pattern| pattern.parse(line, fields)),
        }
    }

    /// Whether a line that is of no format is not what the user said.
    pub fn is_unparsed(&self) -> bool {
        !matches!(self.format, Format::Auto | Format::Plain | Format::Comfyui)
    }

    fn by_look<'a>(&mut self, line: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
        let Self { times, syslog, when, .. } = self;
        match line.first()? {
            b'[' => comfyui::parse(line, times, fields),
            b'0'..=b'9' if matches!(line.get(4), Some(b'-' | b'/')) => {
                let found = stamped(line, times, fields);
                if found.is_some_and(|found| found.severity > 0) || line.get(10) != Some(&b'T') {
                    return found;
                }
                let fields_of_syslog = &mut Fields::default();
                match syslog::by_look(line, syslog, when, fields_of_syslog) {
                    None => found,
                    found => {
                        std::mem::swap(fields, fields_of_syslog);
                        found
                    }
                }
            }
            b'<' => syslog::by_look(line, syslog, when, fields),
            b'0'..=b'9' | b':' => nginx::access(line, times, fields),
            b'!' | b'P' if comfyui::parse(line, times, fields).is_some() => Some(Found { message: Some(line), severity: 0 }),
            b'A'..=b'Z' => {
                if let found @ Some(_) = syslog::by_look(line, syslog, when, fields) {
                    return found;
                }
                if let found @ Some(_) = python::parse(line, times, fields) {
                    return found;
                }
                fields.clear();
                by_level(line, fields)
            }
            b'a'..=b'z' => by_level(line, fields),
            _ => None,
        }
    }
}

/// A line that begins with a date.
fn stamped<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    if line[4] == b'/'
        && let found @ Some(_) = nginx::error(line, times, fields)
    {
        return found;
    }
    fields.clear();
    if let found @ Some(_) = python::parse(line, times, fields) {
        return found;
    }
    fields.clear();
    let stamp = times.at(line)?;
    put_time(fields, stamp.time_unix_nano);
    let rest = line[stamp.len..].trim_ascii_start();
    let rest = rest.strip_prefix(b"- ").or(rest.strip_prefix(b"| ")).unwrap_or(rest);
    Some(Found { message: Some(rest), severity: 0 })
}

/// `LEVEL message` and `level: message`. `Error: message` is how languages write an exception, not a level.
fn by_level<'a>(line: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
    let word = level(line)?;
    if word[0].is_ascii_uppercase() && word[1].is_ascii_lowercase() {
        return None;
    }
    let leading = bracketed::leading_level(line)?;
    Some(Found { severity: put_level(fields, leading.word), message: Some(leading.rest) })
}
