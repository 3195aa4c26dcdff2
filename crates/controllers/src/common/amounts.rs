//! Numbers that may be given as a share: `2` or `"25%"`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number meant, of `total`; a share is rounded up or down. What is neither a number nor a share counts as zero
/// (validation keeps it out).
pub fn resolve(amount: &IntOrString, total: i32, round_up: bool) -> i32 {
    match amount {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => match text.strip_suffix('%').and_then(|share| share.parse::<i64>().ok()) {
            Some(share) => {
                let hundredths = share.saturating_mul(i64::from(total));
                let number = if round_up { (hundredths + 99).div_euclid(100) } else { hundredths.div_euclid(100) };
                i32::try_from(number).unwrap_or(i32::MAX)
            }
            None => text.parse().unwrap_or(0),
        },
    }
}

/// Whether it is given as a share.
pub fn is_share(amount: &IntOrString) -> bool {
    matches!(amount, IntOrString::String(text) if text.ends_with('%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(amount: &str, total: i32, round_up: bool, expected: i32) {
        let amount = amount.parse().map_or_else(|_| IntOrString::String(amount.into()), IntOrString::Int);
        assert_eq!(resolve(&amount, total, round_up), expected, "{amount:?} of {total}");
    }

    #[test]
    fn shares_are_rounded_as_asked() {
        check("3", 10, true, 3);
        check("25%", 3, true, 1);
        check("25%", 3, false, 0);
        check("25%", 4, true, 1);
        check("100%", 7, false, 7);
        check("x", 7, false, 0);
    }
}
