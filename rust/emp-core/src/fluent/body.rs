//! The entries of one message, as far as they are there: an array of them, or bytes of them, plain or compressed.
//!
//! A bad entry costs itself alone; where a body cannot be followed any more its rest is rejected as one. A full batch stops it.

use super::cursor::{Fault, Scan};
use super::decoder::{Limits, read_is_full};
use super::entry::{self, Entry};
use super::inflate::{Compression, Inflater, whole};
use super::message::Options;
use super::read::{MAX_REJECTED_BYTES, Read};
use crate::error::ErrorKind;
use crate::normalize::Builder;

pub(super) const TOO_LONG: &str = "an entry is longer than max_entry_bytes";

/// How the entries lie in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// So many elements of an array.
    Entries(usize),
    /// So many bytes.
    Bytes(usize),
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes are done with; more are needed, or the batch is full.
    Partly(usize),
    /// So many bytes are done with, and the body has ended.
    Done(usize),
    /// After so many bytes the message itself cannot be followed.
    Unfollowable(usize, &'static str),
}

/// Inflation of a body.
#[derive(Debug)]
struct Inflation {
    compression: Compression,
    inflater: Option<Inflater>,
    /// Inflated bytes; decoded up to `at`.
    plain: Vec<u8>,
    at: usize,
    total: usize,
    /// Nothing more can come out.
    ended: bool,
    /// Why the rest is rejected, once what came out before is decoded.
    failed: Option<(ErrorKind, String)>,
}

/// A body on its way.
#[derive(Debug)]
pub struct Body {
    /// The message's tag.
    pub tag: Vec<u8>,
    /// Where its rows begin in this read's batch.
    pub row_start: usize,
    /// Its options, where they are known before its end.
    pub options: Option<Options>,
    /// Whether options follow.
    pub options_at_end: bool,
    /// Bytes of the message behind the body, where known.
    pub tail_bytes: Option<usize>,
    /// A full batch does not stop it.
    pub no_batch_limit: bool,
    form: Form,
    inflation: Option<Box<Inflation>>,
    /// The walk over an entry that is not whole yet; it begins at the first byte that is there.
    scan: Option<Scan>,
    /// An entry that is too long to be kept, being stepped over.
    over_long: bool,
    /// The rest is only stepped over.
    broken: bool,
    /// Records so far, the rejected ones included.
    records: u64,
}

impl Body {
    /// A body at its first entry.
    pub fn new(tag: &[u8], form: Form, compression: Option<Compression>, row_start: usize) -> Self {
        let inflation = compression.map(|compression| {
            Box::new(Inflation { compression, inflater: None, plain: Vec::new(), at: 0, total: 0, ended: false, failed: None })
        });
        Self {
            tag: tag.to_vec(),
            row_start,
            options: None,
            options_at_end: false,
            tail_bytes: None,
            no_batch_limit: false,
            form,
            inflation,
            scan: None,
            over_long: false,
            broken: false,
            records: 0,
        }
    }

    /// Entries or bytes to come.
    pub fn left(&self) -> usize {
        match self.form {
            Form::Entries(left) | Form::Bytes(left) => left,
        }
    }

    /// Inflated bytes that are not decoded yet.
    pub fn inflated_bytes(&self) -> usize {
        self.inflation.as_ref().map_or(0, |inflation| inflation.plain.len() - inflation.at)
    }

    /// Decodes what is there; `here` is the offset of `data` in the connection.
    pub fn read(&mut self, builder: &mut Builder, limits: &Limits, data: &[u8], here: u64, read: &mut Read) -> Step {
        match self.form {
            Form::Entries(0) => Step::Done(0),
            Form::Entries(left) => {
                let mut left = left;
                let used = self.entries(builder, limits, data, here, Some(&mut left), false, read);
                self.form = Form::Entries(left);
                match (left, self.broken) {
                    (0, _) => Step::Done(used),
                    (_, true) => Step::Unfollowable(used, "an entry is no msgpack, so its end cannot be found"),
                    _ => Step::Partly(used),
                }
            }
            Form::Bytes(left) => {
                let there = &data[..data.len().min(left)];
                let last = there.len() == left;
                let used = if self.broken {
                    there.len()
                } else if self.inflation.is_some() {
                    self.inflate(builder, limits, there, here, last, read)
                } else {
                    let used = self.entries(builder, limits, there, here, None, last, read);
                    if self.broken { there.len() } else { used }
                };
                self.form = Form::Bytes(left - used);
                if left == used
                    && (self.broken
                        || self.inflation.as_ref().is_none_or(|inflation| inflation.ended && inflation.at == inflation.plain.len()))
                {
                    Step::Done(used)
                } else {
                    Step::Partly(used)
                }
            }
        }
    }

    /// Decodes entries from `data`; returns how much is done with. `last`: no more will come, so what is torn stays so.
    #[allow(clippy::too_many_arguments)]
    fn entries(
        &mut self,
        builder: &mut Builder,
        limits: &Limits,
        data: &[u8],
        here: u64,
        mut left: Option<&mut usize>,
        last: bool,
        read: &mut Read,
    ) -> usize {
        let mut pos = 0;
        while pos < data.len() && left.as_ref().is_none_or(|left| **left > 0) && !self.is_full(builder, read) {
            if data.len() - pos > limits.max_entry_bytes && self.scan.is_none() {
                self.scan = Some(Scan::value(0));
            }
            if let Some(scan) = &mut self.scan {
                let looked_at = scan.pos;
                let whole = scan.advance(&data[pos..]);
                let size = scan.pos;
                read.looked_at_bytes += size.min(data.len() - pos).saturating_sub(looked_at) as u64;
                let too_long = size > limits.max_entry_bytes || (data.len() - pos > limits.max_entry_bytes && whole == Ok(false));
                match whole {
                    Ok(false) if !last => {
                        if !too_long && !self.over_long {
                            break;
                        }
                        // Stepped over as it arrives: the walk goes on behind what is here, or at a head that is not whole yet.
                        let passed = size.min(data.len() - pos);
                        scan.pos -= passed;
                        if !self.over_long {
                            self.reject(&data[pos..], here + pos as u64, ErrorKind::EntryInvalid, TOO_LONG, read);
                            self.over_long = true;
                        }
                        pos += passed;
                        break;
                    }
                    Ok(true) if too_long || self.over_long => {
                        if !self.over_long {
                            self.reject(&data[pos..pos + size], here + pos as u64, ErrorKind::EntryInvalid, TOO_LONG, read);
                        }
                        (self.scan, self.over_long) = (None, false);
                        pos += size;
                        if let Some(left) = left.as_deref_mut() {
                            *left -= 1;
                        }
                        continue;
                    }
                    Ok(true) => self.scan = None,
                    Ok(false) => return self.torn(data, pos, here, Fault::Truncated, read),
                    Err(fault) => return self.torn(data, pos, here, fault, read),
                }
            }
            let entry = entry::read(builder, data, pos);
            read.looked_at_bytes += match entry {
                Entry::Row(end) | Entry::Marker(end) | Entry::Bad(end, _) => end - pos,
                Entry::Torn(_) => data.len() - pos,
            } as u64;
            match entry {
                Entry::Row(end) => {
                    self.records += 1;
                    pos = end;
                }
                Entry::Marker(end) => {
                    builder.set_tag(&self.tag);
                    pos = end;
                }
                Entry::Bad(end, detail) => {
                    self.reject(&data[pos..end], here + pos as u64, ErrorKind::EntryInvalid, detail, read);
                    pos = end;
                }
                Entry::Torn(Fault::Truncated) if !last => {
                    self.scan = Some(Scan::value(0));
                    continue;
                }
                Entry::Torn(fault) => return self.torn(data, pos, here, fault, read),
            }
            if let Some(left) = left.as_deref_mut() {
                *left -= 1;
            }
        }
        pos
    }

    fn is_full(&self, builder: &Builder, read: &Read) -> bool {
        read_is_full(builder, read) && !self.no_batch_limit
    }

    fn reject(&mut self, data: &[u8], offset: u64, kind: ErrorKind, detail: &str, read: &mut Read) {
        self.records += 1;
        read.reject(kind, detail, offset, data, 1);
    }

    /// The rest of the body cannot be followed: rejected as one, for as many records as the sender's hint leaves.
    fn torn(&mut self, data: &[u8], pos: usize, here: u64, fault: Fault, read: &mut Read) -> usize {
        self.broken = true;
        if !self.over_long {
            self.reject_rest(&data[pos..], here + pos as u64, ErrorKind::EntryInvalid, fault.detail(), read);
        }
        pos
    }

    fn reject_rest(&mut self, data: &[u8], offset: u64, kind: ErrorKind, detail: &str, read: &mut Read) {
        let hint = self.options.as_ref().and_then(|options| options.size).unwrap_or_default();
        // A hint is the sender's word: no more records than bytes.
        let records = hint.saturating_sub(self.records).clamp(1, (data.len() as u64).max(1));
        self.records += records;
        read.reject(kind, detail, offset, data, records);
    }

    /// Inflates and decodes; returns how much of `data` is done with.
    fn inflate(&mut self, builder: &mut Builder, limits: &Limits, data: &[u8], here: u64, last: bool, read: &mut Read) -> usize {
        let Some(mut inflation) = self.inflation.take() else { return 0 };
        let mut used = 0;
        let mut failed = inflation.failed.take();
        if inflation.inflater.is_none() && failed.is_none() {
            if last && whole(inflation.compression, data, &mut inflation.plain) {
                (used, inflation.ended, inflation.total) = (data.len(), true, inflation.plain.len());
                builder.reserve(inflation.plain.len());
            } else {
                match Inflater::new(inflation.compression) {
                    Ok(inflater) => inflation.inflater = Some(inflater),
                    Err(error) => failed = Some((ErrorKind::BodyInvalid, format!("the body cannot be inflated ({error})"))),
                }
            }
        }
        loop {
            if inflation.total > limits.max_inflated_bytes && failed.is_none() {
                // What is over the limit is not looked at.
                inflation.plain.truncate(inflation.plain.len() - (inflation.total - limits.max_inflated_bytes));
                failed = Some((ErrorKind::FrameTooLarge, format!("the body inflates to more than {} bytes", limits.max_inflated_bytes)));
            }
            let ended = inflation.ended || failed.is_some();
            let plain = &inflation.plain[inflation.at..];
            // Offsets within inflated bytes mean nothing on the connection: those of the body's bytes at hand.
            let (taken, count) = (self.entries(builder, limits, plain, here, None, ended && failed.is_none(), read), plain.len());
            inflation.at += taken;
            if self.broken {
                break;
            }
            if failed.is_some() && self.is_full(builder, read) {
                inflation.failed = failed;
                break;
            }
            if let Some((kind, detail)) = failed {
                let rest = if kind == ErrorKind::BodyInvalid { data } else { &inflation.plain[inflation.at..] };
                let rest = &rest[..rest.len().min(MAX_REJECTED_BYTES)];
                self.reject_rest(rest, here, kind, &detail, read);
                self.broken = true;
                break;
            }
            if self.is_full(builder, read) || ended {
                break;
            }
            debug_assert!(taken <= count);
            inflation.plain.drain(..inflation.at);
            inflation.at = 0;
            let before = inflation.plain.len();
            let Some(inflater) = &mut inflation.inflater else { break };
            match inflater.push(&data[used..], &mut inflation.plain) {
                Ok(len) => {
                    used += len;
                    if len == 0 && inflation.plain.len() == before {
                        if !last {
                            break;
                        }
                        inflation.ended = true;
                        if !inflater.finish(&mut inflation.plain) || used < data.len() {
                            failed = Some((ErrorKind::BodyInvalid, "the compressed body ends in its middle".to_owned()));
                        }
                    }
                }
                Err(error) => failed = Some((ErrorKind::BodyInvalid, format!("the body cannot be inflated ({error})"))),
            }
            inflation.total += inflation.plain.len() - before;
        }
        self.inflation = Some(inflation);
        if self.broken { data.len() } else { used }
    }
}
