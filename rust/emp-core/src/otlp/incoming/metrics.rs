//! One metric of a request: its points are the items. Bad ones are left out of it; a metric with none left is left out as a whole.

use super::items::ITEM_DEPTH;
use super::usual_point::is_usual;
use super::{Place, Walk};
use crate::otlp::descriptors::{Descriptor, Kind};
use crate::otlp::fields::metric;
use crate::otlp::points::{count_points, put_with_points};
use crate::otlp::validate::check;
use crate::otlp::wire::{Field, Reader, WireError};

/// A metric with more bad points is set aside as a whole.
const MOST_BAD_POINTS: usize = 1 << 16;

impl Walk<'_> {
    /// Appends a metric without its bad points, which are set aside, or sets it aside as a whole.
    pub(super) fn metric(&mut self, field: &Field<'_>, place: &Place) {
        let message = field.bytes().unwrap_or_default();
        let checked = match self.check_metric(field.message()) {
            Ok(checked) => checked,
            Err(error) => return self.reject(field, error, message, u64::from(count_points(field.message()).max(1))),
        };
        for bad in &checked.bad {
            self.reject(field, bad.error, bad.point, 1);
        }
        let pushed = if checked.bad.is_empty() {
            self.batch.push_message(message, place.resource, place.scope)
        } else if checked.good == 0 {
            return;
        } else {
            self.scratch.clear();
            let is_good = |number| checked.bad.binary_search_by_key(&number, |bad| bad.number).is_err();
            put_with_points(&mut self.scratch, field.message(), is_good)
                .and_then(|()| self.batch.push_message(&self.scratch, place.resource, place.scope))
        };
        match pushed {
            Ok(()) => self.read.received += checked.good,
            Err(error) => self.reject(field, error, message, checked.good.max(1)),
        }
    }

    /// Checks all of a metric; an error means that it is broken outside of its points.
    fn check_metric<'a>(&self, mut message: Reader<'a>) -> Result<Checked<'a>, WireError> {
        let mut checked = Checked { good: 0, bad: Vec::new() };
        while let Some(field) = message.next_field()? {
            let Some(descriptor) = self.row.iter().find(|descriptor| descriptor.number == field.number) else { continue };
            match (descriptor.kind, field.bytes()) {
                (Kind::Message(data), Some(_)) if metric::DATA.contains(&field.number) => checked.data(&field, data)?,
                _ => check(&field, descriptor, ITEM_DEPTH)?,
            }
        }
        Ok(checked)
    }
}

struct Checked<'a> {
    good: u64,
    bad: Vec<Bad<'a>>,
}

struct Bad<'a> {
    /// Its number among the metric's points.
    number: u32,
    point: &'a [u8],
    error: WireError,
}

impl<'a> Checked<'a> {
    fn data(&mut self, data: &Field<'a>, descriptors: &[Descriptor]) -> Result<(), WireError> {
        let mut message = data.message();
        while let Some(field) = message.next_field()? {
            if field.number == metric::POINTS && field.bytes().is_some_and(|point| is_usual(data.number, point)) {
                self.good += 1;
                continue;
            }
            let Some(descriptor) = descriptors.iter().find(|descriptor| descriptor.number == field.number) else { continue };
            let number = self.good as u32 + self.bad.len() as u32;
            match (check(&field, descriptor, ITEM_DEPTH - 1), field.bytes()) {
                (Ok(()), Some(_)) if field.number == metric::POINTS => self.good += 1,
                (Err(error), Some(point)) if field.number == metric::POINTS => {
                    if self.bad.len() == MOST_BAD_POINTS {
                        return Err(WireError { detail: "a metric with more than 65,536 bad points", ..error });
                    }
                    self.bad.push(Bad { number, point, error });
                }
                (result, _) => result?,
            }
        }
        Ok(())
    }
}
