//! The data points of a metric: how many there are, what their attributes measure, and the metric with only some of them.

use super::fields::metric;
use super::wire::{Field, Reader, WireError, put_message};

/// The points of a metric, as far as it can be followed.
pub fn count_points(mut message: Reader<'_>) -> u32 {
    let mut count = 0;
    while let Ok(Some(field)) = message.next_field() {
        if metric::DATA.contains(&field.number) {
            let mut data = field.message();
            while let Ok(Some(field)) = data.next_field() {
                count += u32::from(field.number == metric::POINTS && field.bytes().is_some());
            }
        }
    }
    count
}

/// What [`measure_points`] finds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Points {
    /// How many there are.
    pub count: u32,
    /// The longest field that was not looked into: a bound of the keys and values in it.
    pub short_bytes: u32,
}

/// Counts the points of a metric and calls `attribute` with the long attributes (of 128 bytes or more) of them and of their exemplars, as far
/// as the metric can be followed. Short ones only count into `short_bytes`: to look into each would cost ten times what counting does.
pub fn measure_points(mut message: Reader<'_>, mut attribute: impl FnMut(&Field<'_>)) -> Points {
    let mut points = Points::default();
    while let Ok(Some(data_field)) = message.next_field() {
        if !metric::DATA.contains(&data_field.number) {
            continue;
        }
        let attributes = metric::point_attributes(data_field.number);
        let exemplars = metric::point_exemplars(data_field.number);
        let mut data = data_field.message();
        while let Ok(Some(point)) = data.next_field() {
            if point.number != metric::POINTS || point.bytes().is_none() {
                continue;
            }
            points.count += 1;
            for_each_long_field(point.message(), &mut points.short_bytes, |field, short_bytes| {
                if field.number == attributes {
                    attribute(field);
                } else if field.number == exemplars {
                    for_each_long_field(field.message(), short_bytes, |field, _| {
                        if field.number == metric::EXEMPLAR_ATTRIBUTES {
                            attribute(field);
                        }
                    });
                }
            });
        }
    }
    points
}

fn for_each_long_field(mut message: Reader<'_>, short_bytes: &mut u32, mut visit: impl FnMut(&Field<'_>, &mut u32)) {
    loop {
        *short_bytes = (*short_bytes).max(skip_short_fields(&mut message));
        match message.next_field() {
            Ok(Some(field)) => visit(&field, short_bytes),
            _ => return,
        }
    }
}

/// Steps over fields as long as they are plain and short (a one-byte tag; fixed, a one-byte varint, or under 128 bytes), and returns the
/// bytes of the longest. For who looks for long ones: several times faster than reading them.
#[inline]
fn skip_short_fields(message: &mut Reader<'_>) -> u32 {
    let mut longest = 0;
    while let [tag @ 0x08..0x80, rest @ ..] = message.rest() {
        let len = match (tag & 7, rest) {
            (0, [0..0x80, ..]) => 2,
            (1, [_, _, _, _, _, _, _, _, ..]) => 9,
            (2, [len @ 0..0x80, body @ ..]) if usize::from(*len) <= body.len() => {
                longest = longest.max(u32::from(*len));
                2 + usize::from(*len)
            }
            (5, [_, _, _, _, ..]) => 5,
            _ => break,
        };
        message.at += len;
    }
    longest
}

/// Appends a metric with those of its points that `keep` says, by their number; everything else of it is kept as it lies.
pub fn put_with_points(out: &mut Vec<u8>, mut message: Reader<'_>, keep: impl Fn(u32) -> bool) -> Result<(), WireError> {
    let mut number = 0;
    while let Some(field) = message.next_field()? {
        if !metric::DATA.contains(&field.number) || field.bytes().is_none() {
            out.extend_from_slice(field.raw);
            continue;
        }
        let mut kept = Ok(());
        put_message(out, field.number, |out| kept = put_data(out, field.message(), &mut number, &keep));
        kept?;
    }
    Ok(())
}

fn put_data(out: &mut Vec<u8>, mut data: Reader<'_>, number: &mut u32, keep: &impl Fn(u32) -> bool) -> Result<(), WireError> {
    while let Some(field) = data.next_field()? {
        let is_point = field.number == metric::POINTS && field.bytes().is_some();
        if !is_point || keep(*number) {
            out.extend_from_slice(field.raw);
        }
        *number += u32::from(is_point);
    }
    Ok(())
}
