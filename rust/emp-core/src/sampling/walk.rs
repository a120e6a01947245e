//! Through an encoded trace request, span by span, without making a batch of it.

use crate::otlp::fields::{request, resource_rows, scope_rows};
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// What is met on the way.
pub enum Part<'a> {
    /// A ResourceSpans message; what follows until the next lies in it.
    Resource(Reader<'a>),
    /// A ScopeSpans message; likewise.
    Scope(Reader<'a>),
    /// A Span message.
    Span(Reader<'a>),
}

/// Calls `visit` with each part of a request, enclosing ones first.
pub fn walk<'a>(request: &'a [u8], mut visit: impl FnMut(Part<'a>) -> Result<(), WireError>) -> Result<(), WireError> {
    for_each_field(Reader::new(request), |field| {
        if field.number != request::RESOURCE_ROWS {
            return Ok(());
        }
        visit(Part::Resource(field.message()))?;
        for_each_field(field.message(), |field| {
            if field.number != resource_rows::SCOPE_ROWS {
                return Ok(());
            }
            visit(Part::Scope(field.message()))?;
            spans(field.message(), &mut visit)
        })
    })
}

fn spans<'a>(mut scope: Reader<'a>, visit: &mut impl FnMut(Part<'a>) -> Result<(), WireError>) -> Result<(), WireError> {
    const ROW: u8 = (scope_rows::ROW << 3 | 2) as u8;
    loop {
        while let Some(span) = scope.quick_message(ROW) {
            visit(Part::Span(span))?;
        }
        match scope.next_field()? {
            Some(field) if field.number == scope_rows::ROW && field.bytes().is_some() => visit(Part::Span(field.message()))?,
            Some(_) => {}
            None => return Ok(()),
        }
    }
}
