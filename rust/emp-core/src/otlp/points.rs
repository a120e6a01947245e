//! The data points of a metric: how many there are, and the metric with only some of them.

use super::fields::metric;
use super::wire::{Reader, WireError, put_message};

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
