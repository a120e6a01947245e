//! Spans and metrics as OTLP JSON: each line is an export request of one row, which the Collector's file receiver reads too.

use super::text::{put_base64, put_f64, put_hex, put_i64, put_string};
use crate::batch::{Batch, Signal, TableEntry};
use crate::otlp::descriptors::{Descriptor, Kind, METRIC, RESOURCE, SCOPE, SPAN};
use crate::otlp::value::MAX_DEPTH;
use crate::otlp::wire::{Field, Reader, Value, WireError};

/// The lines of a batch of spans or metrics.
pub fn lines(batch: &Batch) -> Result<Vec<u8>, WireError> {
    let (resources_name, scopes_name, rows_name, row): (_, _, _, &[Descriptor]) = match batch.signal {
        Signal::Metrics => ("resourceMetrics", "scopeMetrics", "metrics", &METRIC),
        _ => ("resourceSpans", "scopeSpans", "spans", &SPAN),
    };
    let resources = batch.resources.iter().map(|entry| head("resource", entry, &RESOURCE)).collect::<Result<Vec<_>, _>>()?;
    let scopes = batch.scopes.iter().map(|entry| head("scope", entry, &SCOPE)).collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::with_capacity(batch.rows.len() * 2);
    for index in 0..batch.len() {
        let put = |out: &mut Vec<u8>, parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        put(&mut out, &["{\"", resources_name, "\":[{"]);
        out.extend_from_slice(&resources[batch.columns.resource[index] as usize]);
        put(&mut out, &[",\"", scopes_name, "\":[{"]);
        out.extend_from_slice(&scopes[batch.columns.scope[index] as usize]);
        put(&mut out, &[",\"", rows_name, "\":["]);
        put_message(&mut out, Reader::new(batch.message(index)), row, MAX_DEPTH * 2)?;
        put(&mut out, &["]}]}]}\n"]);
    }
    Ok(out)
}

/// `"resource":{…}` or `"scope":{…}`, and the schema URL where there is one.
fn head(name: &str, entry: &TableEntry, descriptors: &[Descriptor]) -> Result<Vec<u8>, WireError> {
    let mut out = format!("\"{name}\":").into_bytes();
    put_message(&mut out, Reader::new(&entry.message), descriptors, MAX_DEPTH * 2)?;
    if !entry.schema_url.is_empty() {
        out.extend_from_slice(b",\"schemaUrl\":");
        put_string(&mut out, &entry.schema_url);
    }
    Ok(out)
}

/// Appends a message as an object; fields without a descriptor are left out. Nested too deep it is empty.
fn put_message(out: &mut Vec<u8>, mut message: Reader<'_>, descriptors: &[Descriptor], depth: usize) -> Result<(), WireError> {
    let mut fields: Vec<(usize, Field<'_>)> = Vec::new();
    while depth > 0
        && let Some(field) = message.next_field()?
    {
        if let Some(index) = descriptors.iter().position(|descriptor| descriptor.number == field.number) {
            fields.push((index, field));
        }
    }
    // Stable: the elements of a list keep their order, wherever else in the message they lie.
    fields.sort_by_key(|(index, _)| *index);
    let mut separator = b'{';
    for group in fields.chunk_by(|(a, _), (b, _)| a == b) {
        let descriptor = &descriptors[group[0].0];
        out.push(separator);
        separator = b',';
        out.push(b'"');
        out.extend_from_slice(descriptor.name.as_bytes());
        out.extend_from_slice(b"\":");
        if descriptor.repeated {
            put_list(out, group, descriptor.kind, depth)?;
        } else {
            // The last one counts, as protobuf says.
            put_field(out, &group[group.len() - 1].1, descriptor.kind, depth)?;
        }
    }
    if separator == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(())
}

fn put_list(out: &mut Vec<u8>, group: &[(usize, Field<'_>)], kind: Kind, depth: usize) -> Result<(), WireError> {
    let start = out.len();
    for (_, field) in group {
        match (kind, field.value) {
            // Scalars may lie packed in one field.
            (Kind::Fixed64 | Kind::Double, Value::Bytes(packed)) => {
                for chunk in packed.chunks_exact(8) {
                    let bits = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
                    out.push(b',');
                    put_scalar(out, bits, kind);
                }
            }
            (Kind::Uint64, Value::Bytes(_)) => {
                let mut packed = field.message();
                while let Some(value) = packed.next_varint()? {
                    out.push(b',');
                    put_scalar(out, value, kind);
                }
            }
            _ => {
                out.push(b',');
                put_field(out, field, kind, depth)?;
            }
        }
    }
    if out.len() == start {
        out.push(b'[');
    } else {
        out[start] = b'[';
    }
    out.push(b']');
    Ok(())
}

fn put_field(out: &mut Vec<u8>, field: &Field<'_>, kind: Kind, depth: usize) -> Result<(), WireError> {
    let bytes = field.bytes().unwrap_or_default();
    match kind {
        Kind::Message(descriptors) => return put_message(out, field.message(), descriptors, depth.saturating_sub(1)),
        Kind::String => put_string(out, bytes),
        Kind::Base64 | Kind::TraceId | Kind::SpanId => {
            out.push(b'"');
            if matches!(kind, Kind::Base64) {
                put_base64(out, bytes)
            } else {
                put_hex(out, bytes)
            }
            out.push(b'"');
        }
        _ => put_scalar(out, field.scalar().unwrap_or(0), kind),
    }
    Ok(())
}

fn put_scalar(out: &mut Vec<u8>, bits: u64, kind: Kind) {
    match kind {
        Kind::Bool => out.extend_from_slice(if bits != 0 { b"true" } else { b"false" }),
        Kind::Double => put_f64(out, f64::from_bits(bits)),
        Kind::Uint64 | Kind::Fixed64 => out.extend_from_slice(format!("\"{bits}\"").as_bytes()),
        Kind::Int64 | Kind::Sfixed64 => out.extend_from_slice(format!("\"{}\"", bits as i64).as_bytes()),
        Kind::Sint32 => put_i64(out, (bits >> 1) as i64 ^ -((bits & 1) as i64)),
        _ => put_i64(out, bits as i64),
    }
}
