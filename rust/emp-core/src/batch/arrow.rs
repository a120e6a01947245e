//! Arrow columns of a batch, built on demand, and a batch out of Arrow columns.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, UInt8Array, UInt32Array};
use arrow_schema::{DataType, Field, Schema};

use super::{Batch, FLAG_ERROR, FLAG_EVENT, Signal, TableEntry};
use crate::error::{CoreError, ErrorKind};
use crate::json_lines::value::value_text;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::{log, resource, scope, span};
use crate::otlp::value::for_each_pair;
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// The columns that are no attributes.
pub const KNOWN_COLUMNS: [&str; 11] = [
    "time_unix_nano",
    "observed_time_unix_nano",
    "severity_number",
    "severity_text",
    "body",
    "trace_id",
    "span_id",
    "is_error",
    "is_event",
    "tag",
    "row_bytes",
];

/// So many attribute columns come when all are asked for; more must be named.
const MAX_DISCOVERED: usize = 128;

impl Batch {
    /// The asked columns: known ones, else the attribute of that name of the row, else of its resource, as text. None: all known ones and
    /// the attributes that occur, at most 128 of them.
    pub fn to_arrow(&self, columns: Option<&[String]>) -> Result<RecordBatch, CoreError> {
        let discovered;
        let names = match columns {
            Some(names) => names,
            None => {
                discovered = self.discovered_columns();
                &discovered
            }
        };
        let mut scanned = Scanned::new(self, names);
        scanned.scan(self)?;
        let mut fields = Vec::with_capacity(names.len());
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(names.len());
        for name in names {
            let array = match self.ready_column(name) {
                Some(array) => array,
                None => scanned.take(name),
            };
            fields.push(Field::new(name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.len()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
            .map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, error.to_string()))
    }

    /// The columns that need no look at the rows.
    fn ready_column(&self, name: &str) -> Option<ArrayRef> {
        let columns = &self.columns;
        Some(match name {
            "time_unix_nano" => Arc::new(Int64Array::from(columns.time_unix_nano.clone())),
            "severity_number" => Arc::new(UInt8Array::from(columns.severity_number.clone())),
            "trace_id" => ids(&columns.trace_id),
            "span_id" => ids(&columns.span_id),
            "is_error" => flags(&columns.flags, FLAG_ERROR),
            "is_event" => flags(&columns.flags, FLAG_EVENT),
            "row_bytes" => Arc::new(UInt32Array::from_iter_values((0..self.len()).map(|row| self.row(row).len() as u32))),
            "tag" => {
                let tags: Vec<_> = self.scopes.iter().map(tag_of).collect();
                let mut builder = StringBuilder::new();
                for scope in &columns.scope {
                    append(&mut builder, tags[*scope as usize]);
                }
                Arc::new(builder.finish())
            }
            _ => return None,
        })
    }

    fn discovered_columns(&self) -> Vec<String> {
        let mut names: Vec<String> = KNOWN_COLUMNS.map(str::to_owned).to_vec();
        let mut add = |message: &[u8], number: u32| {
            // Bytes that cannot be read name no column.
            let _ = for_each_pair(Reader::new(message), number, |pair| {
                if names.len() < KNOWN_COLUMNS.len() + MAX_DISCOVERED
                    && let Ok(key) = std::str::from_utf8(pair.key)
                    && !names.iter().any(|name| name == key)
                {
                    names.push(key.to_owned());
                }
                Ok::<(), WireError>(())
            });
        };
        for entry in &self.resources {
            add(&entry.message, resource::ATTRIBUTES);
        }
        if let Some(number) = attributes_field(self.signal) {
            for row in 0..self.len() {
                add(self.message(row), number);
            }
        }
        names
    }
}

/// The field number of the attributes of a row; None for metrics.
pub(crate) fn attributes_field(signal: Signal) -> Option<u32> {
    match signal {
        Signal::Logs => Some(log::ATTRIBUTES),
        Signal::Traces => Some(span::ATTRIBUTES),
        Signal::Metrics => None,
    }
}

/// The Fluent tag of a scope.
pub(crate) fn tag_of(entry: &TableEntry) -> Option<&[u8]> {
    string_attribute(&entry.message, scope::ATTRIBUTES, b"fluent.tag")
}

fn ids<const N: usize>(column: &[[u8; N]]) -> ArrayRef {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(column.len(), N as i32);
    for id in column {
        if *id == [0; N] {
            builder.append_null();
        } else {
            // Another width is the only error that there is, and the type of the column is its width.
            builder.append_value(id).expect("an id has the width of its column");
        }
    }
    Arc::new(builder.finish())
}

fn flags(column: &[u8], flag: u8) -> ArrayRef {
    let mut builder = BooleanBuilder::with_capacity(column.len());
    for flags in column {
        builder.append_value(flags & flag != 0);
    }
    Arc::new(builder.finish())
}

fn append(builder: &mut StringBuilder, value: Option<&[u8]>) {
    match value {
        Some(bytes) => builder.append_value(String::from_utf8_lossy(bytes)),
        None => builder.append_null(),
    }
}

/// The columns that one pass over the rows fills.
struct Scanned<'a> {
    observed: Option<Vec<i64>>,
    severity_text: Option<StringBuilder>,
    body: Option<StringBuilder>,
    attributes: Vec<AttributeColumn<'a>>,
}

struct AttributeColumn<'a> {
    key: &'a str,
    of_resource: Vec<Option<Vec<u8>>>,
    builder: StringBuilder,
}

impl<'a> Scanned<'a> {
    fn new(batch: &Batch, names: &'a [String]) -> Self {
        let has = |name: &str| names.iter().any(|asked| asked == name);
        let mut attributes: Vec<AttributeColumn<'a>> = Vec::new();
        for key in names.iter().filter(|name| !KNOWN_COLUMNS.contains(&name.as_str())) {
            if !attributes.iter().any(|column| column.key == key) {
                let of_resource = batch.resources.iter().map(|entry| text_attribute(&entry.message, key.as_bytes())).collect();
                attributes.push(AttributeColumn { key, of_resource, builder: StringBuilder::new() });
            }
        }
        Self {
            observed: has("observed_time_unix_nano").then(Vec::new),
            severity_text: has("severity_text").then(StringBuilder::new),
            body: has("body").then(StringBuilder::new),
            attributes,
        }
    }

    fn scan(&mut self, batch: &Batch) -> Result<(), CoreError> {
        if self.observed.is_none() && self.severity_text.is_none() && self.body.is_none() && self.attributes.is_empty() {
            return Ok(());
        }
        let is_log = batch.signal == Signal::Logs;
        let attributes_number = attributes_field(batch.signal);
        let mut found: Vec<Option<Cow<'_, [u8]>>> = vec![None; self.attributes.len()];
        for row in 0..batch.len() {
            let (mut observed, mut severity_text, mut body) = (0, None, None);
            for_each_field(Reader::new(batch.message(row)), |field| {
                match field.number {
                    number if Some(number) == attributes_number && !self.attributes.is_empty() => {
                        let pair = crate::otlp::scan::key_value(field.message())?;
                        if let Some(index) = self.attributes.iter().position(|column| column.key.as_bytes() == pair.key) {
                            found[index] = value_text(pair.value)?;
                        }
                    }
                    log::OBSERVED_TIME_UNIX_NANO if is_log => observed = field.scalar().unwrap_or(0) as i64,
                    log::SEVERITY_TEXT if is_log => severity_text = field.bytes(),
                    log::BODY if is_log && self.body.is_some() => body = value_text(field.message())?,
                    _ => {}
                }
                Ok::<(), WireError>(())
            })
            .map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
            if let Some(column) = &mut self.observed {
                column.push(observed);
            }
            if let Some(builder) = &mut self.severity_text {
                append(builder, severity_text);
            }
            if let Some(builder) = &mut self.body {
                append(builder, body.as_deref());
            }
            for (column, found) in self.attributes.iter_mut().zip(&mut found) {
                let of_resource = column.of_resource[batch.columns.resource[row] as usize].as_deref();
                // The column also knows a job by the other names that spans have for it.
                let of_column = (column.key == "job_id").then(|| batch.view(batch.columns.job_id[row])).flatten();
                append(&mut column.builder, found.take().as_deref().or(of_column).or(of_resource));
            }
        }
        Ok(())
    }

    /// A filled column; asked for twice it is copied.
    fn take(&mut self, name: &str) -> ArrayRef {
        match name {
            "observed_time_unix_nano" => Arc::new(Int64Array::from(self.observed.clone().unwrap_or_default())),
            "severity_text" => finished(self.severity_text.as_ref()),
            "body" => finished(self.body.as_ref()),
            _ => finished(self.attributes.iter().find(|column| column.key == name).map(|column| &column.builder)),
        }
    }
}

fn finished(builder: Option<&StringBuilder>) -> ArrayRef {
    builder.map_or_else(|| arrow_array::new_empty_array(&DataType::Utf8), |builder| Arc::new(builder.finish_cloned()))
}

/// The text of an attribute of an encoded resource.
pub(crate) fn text_attribute(message: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let mut text = None;
    // Bytes that cannot be read have no attributes.
    let _ = for_each_pair(Reader::new(message), resource::ATTRIBUTES, |pair| {
        if pair.key == key {
            text = value_text(pair.value)?.map(Cow::into_owned);
        }
        Ok::<(), WireError>(())
    });
    text
}
