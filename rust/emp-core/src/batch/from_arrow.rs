//! Log rows out of Arrow columns named as in [`Batch::to_arrow`]; every other column becomes an attribute, typed as the column is.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::DataType;

use super::values::Values;
use super::{Batch, Signal, TableEntry};
use crate::error::{CoreError, ErrorKind};
use crate::otlp::decode::{Interner, with_string_attribute};
use crate::otlp::fields::{log, resource, scope};
use crate::otlp::value::put_key_value;
use crate::otlp::wire::{put_bytes, put_fixed64, put_uint};

/// What the rows of [`Batch::from_arrow`] have that no column says.
#[derive(Clone, Debug, Default)]
pub struct RowDefaults<'a> {
    /// Attributes of the resource of all rows.
    pub resource: &'a [(String, String)],
    /// The Fluent tag of rows without one in a column `tag`.
    pub tag: &'a str,
    /// The observed time of rows without one in a column, and 0 for none.
    pub observed_time_unix_nano: i64,
}

struct Columns {
    time: Option<ArrayRef>,
    observed: Option<ArrayRef>,
    severity_number: Option<ArrayRef>,
    severity_text: Option<ArrayRef>,
    body: Option<Values>,
    trace_id: Option<ArrayRef>,
    span_id: Option<ArrayRef>,
    tag: Option<ArrayRef>,
    attributes: Vec<(String, Values)>,
}

fn of_type(array: &ArrayRef, name: &str, data_type: DataType) -> Result<ArrayRef, CoreError> {
    cast(array, &data_type).map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("column {name:?} cannot be used: {error}")))
}

impl Columns {
    fn of(records: &RecordBatch) -> Result<Self, CoreError> {
        let mut columns = Self {
            time: None,
            observed: None,
            severity_number: None,
            severity_text: None,
            body: None,
            trace_id: None,
            span_id: None,
            tag: None,
            attributes: Vec::new(),
        };
        for (field, array) in records.schema().fields().iter().zip(records.columns()) {
            let name = field.name().as_str();
            match name {
                "time_unix_nano" => columns.time = Some(times(array, name)?),
                "observed_time_unix_nano" => columns.observed = Some(times(array, name)?),
                "severity_number" => columns.severity_number = Some(of_type(array, name, DataType::Int64)?),
                "severity_text" => columns.severity_text = Some(of_type(array, name, DataType::LargeUtf8)?),
                "body" => columns.body = Some(Values::of_array(array)?),
                "trace_id" => columns.trace_id = Some(of_type(array, name, DataType::LargeBinary)?),
                "span_id" => columns.span_id = Some(of_type(array, name, DataType::LargeBinary)?),
                "tag" => columns.tag = Some(of_type(array, name, DataType::LargeUtf8)?),
                // They follow from the others.
                "is_error" | "is_event" | "row_bytes" => {}
                _ => columns.attributes.push((name.to_owned(), Values::of_array(array)?)),
            }
        }
        Ok(columns)
    }
}

/// Nanoseconds since 1970: integers are taken to be that, timestamps are converted.
fn times(array: &ArrayRef, name: &str) -> Result<ArrayRef, CoreError> {
    match array.data_type() {
        DataType::Timestamp(_, _) => {
            let nanoseconds = of_type(array, name, DataType::Timestamp(arrow_schema::TimeUnit::Nanosecond, None))?;
            of_type(&nanoseconds, name, DataType::Int64)
        }
        _ => of_type(array, name, DataType::Int64),
    }
}

fn int(array: Option<&ArrayRef>, row: usize) -> Option<i64> {
    array.filter(|array| array.is_valid(row)).map(|array| array.as_primitive::<Int64Type>().value(row))
}

fn text(array: Option<&ArrayRef>, row: usize) -> Option<&str> {
    array.filter(|array| array.is_valid(row)).map(|array| array.as_string::<i64>().value(row))
}

fn id<'a>(array: Option<&'a ArrayRef>, row: usize, name: &str, width: usize) -> Result<Option<&'a [u8]>, CoreError> {
    let Some(array) = array.filter(|array| array.is_valid(row)) else { return Ok(None) };
    let id = array.as_binary::<i64>().value(row);
    if id.len() != width {
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, format!("{name} of row {row} has {} bytes, not {width}", id.len())));
    }
    Ok(Some(id))
}

impl Batch {
    /// See the module's head.
    pub fn from_arrow(records: &RecordBatch, defaults: &RowDefaults<'_>) -> Result<Self, CoreError> {
        let columns = Columns::of(records)?;
        let mut out = Self::new(Signal::Logs);
        let mut resource_entry = TableEntry::default();
        for (key, value) in defaults.resource {
            with_string_attribute(&mut resource_entry.message, resource::ATTRIBUTES, key.as_bytes(), value.as_bytes());
        }
        out.resources = vec![resource_entry];
        let mut scopes = Interner::default();
        let mut message = Vec::new();
        for row in 0..records.num_rows() {
            message.clear();
            put_row(&mut message, &columns, row, defaults)?;
            let mut entry = TableEntry::default();
            let tag = text(columns.tag.as_ref(), row).unwrap_or(defaults.tag);
            if !tag.is_empty() {
                with_string_attribute(&mut entry.message, scope::ATTRIBUTES, b"fluent.tag", tag.as_bytes());
            }
            let scope = scopes.intern(entry);
            out.push_message(&message, 0, scope).map_err(|error| error.of_kind(ErrorKind::ConfigInvalid))?;
        }
        if out.is_empty() {
            out.resources.clear();
        }
        out.scopes = scopes.entries;
        Ok(out)
    }
}

fn put_row(out: &mut Vec<u8>, columns: &Columns, row: usize, defaults: &RowDefaults<'_>) -> Result<(), CoreError> {
    if let Some(time) = int(columns.time.as_ref(), row).filter(|time| *time > 0) {
        put_fixed64(out, log::TIME_UNIX_NANO, time as u64);
    }
    if let Some(severity) = int(columns.severity_number.as_ref(), row).filter(|severity| *severity != 0) {
        if !(1..=24).contains(&severity) {
            let detail = format!("severity_number of row {row} is {severity}; OTLP has 1 to 24");
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, detail));
        }
        put_uint(out, log::SEVERITY_NUMBER, severity as u64);
    }
    if let Some(severity_text) = text(columns.severity_text.as_ref(), row).filter(|text| !text.is_empty()) {
        put_bytes(out, log::SEVERITY_TEXT, severity_text.as_bytes());
    }
    let value = |values: &Values| match values {
        Values::One(value) => Some(value.clone()),
        Values::Each(values) => values[row].clone(),
    };
    if let Some(body) = columns.body.as_ref().and_then(value) {
        put_bytes(out, log::BODY, &body);
    }
    for (key, values) in &columns.attributes {
        if let Some(value) = value(values) {
            put_key_value(out, log::ATTRIBUTES, key.as_bytes(), &value);
        }
    }
    if let Some(trace_id) = id(columns.trace_id.as_ref(), row, "trace_id", 16)? {
        put_bytes(out, log::TRACE_ID, trace_id);
    }
    if let Some(span_id) = id(columns.span_id.as_ref(), row, "span_id", 8)? {
        put_bytes(out, log::SPAN_ID, span_id);
    }
    let observed = int(columns.observed.as_ref(), row).unwrap_or(defaults.observed_time_unix_nano);
    if observed > 0 {
        put_fixed64(out, log::OBSERVED_TIME_UNIX_NANO, observed as u64);
    }
    Ok(())
}
