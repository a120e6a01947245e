//! OTLP JSON in: an export request to protobuf, item by item, so that one bad item costs itself.
//!
//! ```text
//!   text ──▶ framing (this file) ──▶ items and their fields, by descriptors (fields) ──▶ protobuf request ──▶ incoming
//! ```
//!
//! An item that is not what it should be is set aside with its place in the text, as long as the text itself can be followed. Source: the
//! OTLP specification's JSON encoding (ids in hex, enums as numbers, keys in lowerCamelCase, unknown keys ignored); names of enums and
//! protobuf's own names of fields are read too, as protobuf's parsers do.

mod attribute;
pub(crate) mod escape;
pub(crate) mod fault;
mod fields;
mod numbers;
pub(crate) mod text;

use super::descriptors::{self, Descriptor, Kind, inner};
use super::fields::{metric, request, resource_rows, scope_rows};
use super::validate::MAX_MESSAGE_DEPTH;
use crate::batch::Signal;
use crate::error::{CoreError, ErrorKind};
use crate::normalize::wire::{close, open};
use crate::otlp::incoming::most_entries;
use fault::{Fault, Result};
use fields::{Host, OVER_LIMIT, Writer, list, object};
use text::Text;

/// An item that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where its message begins in the protobuf.
    pub at: usize,
    /// Where it lies in the text.
    pub start: usize,
    /// Where it ends there.
    pub end: usize,
}

/// An item that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadItem {
    /// Where it lies in the text.
    pub start: usize,
    /// Where it ends there.
    pub end: usize,
    /// Where the fault was seen.
    pub offset: usize,
    /// The fault, with the path of fields.
    pub detail: String,
    /// Log records, spans or data points that are lost.
    pub items: u64,
}

/// A request in protobuf.
#[derive(Debug, Default)]
pub struct Transcoded {
    /// The export request.
    pub request: Vec<u8>,
    /// Its log records, spans or metrics, in order.
    pub items: Vec<Item>,
    /// Those that are not in it.
    pub bad: Vec<BadItem>,
}

/// The protobuf of an export request in JSON, of `max_bytes` at most.
pub fn transcode(signal: Signal, text: &[u8], max_bytes: usize) -> std::result::Result<Transcoded, CoreError> {
    let request = descriptors::request(signal);
    let resource_rows = inner(request, request::RESOURCE_ROWS);
    let scope_rows = inner(resource_rows, resource_rows::SCOPE_ROWS);
    let mut transcoder = Transcoder {
        writer: Writer { text: Text::new(text), out: Vec::with_capacity(text.len() / 4 * 3), max_bytes },
        framing: [request, resource_rows, scope_rows],
        row: inner(scope_rows, scope_rows::ROW),
        signal,
        items_left: most_entries(max_bytes),
        done: Transcoded::default(),
        place: [0; 3],
    };
    let result = transcoder.framing(0).and_then(|()| transcoder.writer.text.end());
    result.map_err(|fault| {
        let kind = if fault.detail == OVER_LIMIT { ErrorKind::TooLarge } else { ErrorKind::BodyInvalid };
        CoreError::new(kind, fault.offset, fault.to_string())
    })?;
    transcoder.done.request = transcoder.writer.out;
    Ok(transcoder.done)
}

/// The children of each level of the framing.
const CHILDREN: [u32; 3] = [request::RESOURCE_ROWS, resource_rows::SCOPE_ROWS, scope_rows::ROW];
/// Bad items beyond so many are counted with the last of them, which reaches to their end.
const MOST_BAD_ITEMS: usize = 1 << 12;
/// How many messages may lie in an item's own.
const ITEM_DEPTH: usize = MAX_MESSAGE_DEPTH - CHILDREN.len();

struct Transcoder<'a> {
    writer: Writer<'a>,
    framing: [&'static [Descriptor]; 3],
    row: &'static [Descriptor],
    signal: Signal,
    items_left: usize,
    done: Transcoded,
    /// Where in the lists of the framing the present item is.
    place: [usize; 3],
}

impl Transcoder<'_> {
    /// The object of a level of the framing: request, resource, scope.
    fn framing(&mut self, level: usize) -> Result<()> {
        let depth = MAX_MESSAGE_DEPTH - level;
        object(self, self.framing[level], |this, descriptor| {
            if descriptor.number != CHILDREN[level] {
                return this.writer.field(descriptor, depth);
            }
            if this.writer.null()? {
                return Ok(());
            }
            list(this, |this, index| {
                this.place[level] = index;
                if level + 1 == CHILDREN.len() {
                    return this.row();
                }
                let message = open_wide(&mut this.writer.out, descriptor.number);
                this.framing(level + 1)?;
                close_wide(&mut this.writer.out, message);
                Ok(())
            })
        })
    }

    /// A log record, a span or a metric.
    fn row(&mut self) -> Result<()> {
        self.writer.check_size()?;
        self.items_left = self.items_left.checked_sub(1).ok_or_else(|| self.writer.over_limit())?;
        let out_start = self.writer.out.len();
        let message = open(&mut self.writer.out, (scope_rows::ROW << 3 | 2) as u8);
        self.writer.text.peek();
        let start = self.writer.text.offset();
        let written = if self.signal == Signal::Metrics {
            self.metric()
        } else {
            let row = self.row;
            self.writer.message(row, ITEM_DEPTH).map(|()| true).map_err(|fault| (fault, 1))
        };
        match written {
            Ok(false) => {
                self.writer.out.truncate(out_start);
                Ok(())
            }
            Ok(true) => {
                let end = self.writer.out.len();
                close(&mut self.writer.out, message);
                // A long length has moved the message.
                let at = message + self.writer.out.len() - end;
                self.done.items.push(Item { at, start, end: self.writer.text.offset() });
                Ok(())
            }
            Err((fault, items)) => self.set_aside(fault, out_start, start, items, ""),
        }
    }

    /// Takes an item back that cannot be used, and goes on behind it; a fault where the text cannot be followed.
    #[cold]
    fn set_aside(&mut self, fault: Box<Fault>, out_start: usize, start: usize, items: u64, path: &str) -> Result<()> {
        if fault.broken {
            return Err(fault);
        }
        self.writer.out.truncate(out_start);
        self.writer.text.go_to(start);
        self.writer.text.skip()?;
        let offset = fault.offset;
        let end = self.writer.text.offset();
        if self.done.bad.len() == MOST_BAD_ITEMS
            && let Some(last) = self.done.bad.last_mut()
        {
            last.end = end;
            last.items += items;
            return Ok(());
        }
        let mut fault = if path.is_empty() { fault } else { fault.under(path) };
        for level in (0..CHILDREN.len()).rev() {
            let name = self.framing[level].iter().find(|descriptor| descriptor.number == CHILDREN[level]).map_or("", |found| found.name);
            fault = fault.at_index(self.place[level]).under(name);
        }
        if items > 0 {
            self.done.bad.push(BadItem { start, end, offset, detail: fault.to_string(), items });
        }
        Ok(())
    }

    /// The fields of a metric; its points are items of their own. False when all of these are bad. With a fault comes how many points are
    /// lost with it.
    fn metric(&mut self) -> std::result::Result<bool, (Box<Fault>, u64)> {
        let mut points = Points::default();
        let row = self.row;
        let followed = object(self, row, |this, descriptor| {
            this.unless_wrong(&mut points, |this, points| match descriptor.kind {
                Kind::Message(data) if metric::DATA.contains(&descriptor.number) => this.data(descriptor, data, points),
                _ => this.writer.field(descriptor, ITEM_DEPTH),
            })
        });
        match followed.err().or(points.fault) {
            Some(fault) => Err((fault, if points.good + points.bad == 0 { 1 } else { points.good })),
            None => Ok(points.good > 0 || points.bad == 0),
        }
    }

    /// Steps over a value that is wrong, so that the points of a metric that will be set aside are counted.
    fn unless_wrong(&mut self, points: &mut Points, read: impl FnOnce(&mut Self, &mut Points) -> Result<()>) -> Result<()> {
        self.writer.text.peek();
        let start = self.writer.text.offset();
        match read(self, points) {
            Err(fault) if !fault.broken => {
                points.fault.get_or_insert(fault);
                self.writer.text.go_to(start);
                self.writer.text.skip()
            }
            result => result,
        }
    }

    fn data(&mut self, field: &Descriptor, data: &'static [Descriptor], points: &mut Points) -> Result<()> {
        if self.writer.null()? {
            return Ok(());
        }
        let message = open(&mut self.writer.out, (field.number << 3 | 2) as u8);
        object(self, data, |this, descriptor| {
            this.unless_wrong(points, |this, points| {
                let Kind::Message(point) = descriptor.kind else { return this.writer.field(descriptor, 0) };
                if this.writer.null()? {
                    return Ok(());
                }
                list(this, |this, index| {
                    this.writer.check_size()?;
                    let out_start = this.writer.out.len();
                    let message = open(&mut this.writer.out, (descriptor.number << 3 | 2) as u8);
                    this.writer.text.peek();
                    let start = this.writer.text.offset();
                    match this.writer.message(point, ITEM_DEPTH - 2) {
                        Ok(()) => {
                            close(&mut this.writer.out, message);
                            points.good += 1;
                            Ok(())
                        }
                        Err(fault) => {
                            points.bad += 1;
                            this.set_aside(fault, out_start, start, 1, &format!("{}.{}[{index}]", field.name, descriptor.name))
                        }
                    }
                })
            })
        })?;
        close(&mut self.writer.out, message);
        Ok(())
    }
}

/// The points of a metric.
#[derive(Default)]
struct Points {
    good: u64,
    bad: u64,
    /// The first fault outside of them.
    fault: Option<Box<Fault>>,
}

impl<'a> Host<'a> for Transcoder<'a> {
    fn writer(&mut self) -> &mut Writer<'a> {
        &mut self.writer
    }
}

/// Bytes that a length of the framing takes: it is known when all is written, and nothing is moved then.
const WIDE: usize = 5;

fn open_wide(out: &mut Vec<u8>, number: u32) -> usize {
    out.push((number << 3 | 2) as u8);
    out.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0]);
    out.len()
}

fn close_wide(out: &mut [u8], start: usize) {
    let mut len = out.len() - start;
    for byte in &mut out[start - WIDE..start - 1] {
        *byte = len as u8 | 0x80;
        len >>= 7;
    }
    out[start - 1] = len as u8;
}
