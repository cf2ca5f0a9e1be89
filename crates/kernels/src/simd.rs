//! Loops that are compiled for several instruction sets and chosen at run time, and reductions in a fixed order.
//!
//! Each such loop is compiled three times: for AVX-512, for AVX2, and for any CPU.

/// Compiles `$body` for the widest vectors this CPU has and calls it. After `fused`, the body has a constant parameter
/// that says whether the CPU has fused multiply-add.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $out:ty)? = fused $body:ident) => {
        dispatch! { @ $(#[$doc])* $vis fn $name($($arg: $ty),*) $(-> $out)? = ($body::<true>) ($body::<false>) }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $out:ty)? = $body:ident) => {
        dispatch! { @ $(#[$doc])* $vis fn $name($($arg: $ty),*) $(-> $out)? = ($body) ($body) }
    };
    (@ $(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),*) $(-> $out:ty)?
        = ($fast:expr) ($plain:expr)) => {
        #[allow(unsafe_code, reason = "calls a function compiled for features that were just detected")]
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $out)? {
                    $fast($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn half($($arg: $ty),*) $(-> $out)? {
                    $fast($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: every feature `wide` is compiled for was detected (AVX-512 implies AVX2 and FMA).
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: every feature `half` is compiled for was detected.
                    return unsafe { half($($arg),*) };
                }
            }
            $plain($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// a·b + c, fused where the caller knows that the CPU can: elsewhere that would be a slow library call.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

const LANES: usize = 16;

/// Sum in a fixed order that vectorises: sixteen partial sums, then their sum.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += map(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|v| map(*v)).sum::<f32>()
}

#[inline(always)]
pub(crate) fn dot_body<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    // Four vectors of AVX-512, so that no sum waits for the previous one.
    const LANES: usize = 64;
    let mut lanes = [0f32; LANES];
    let ((left, left_rest), (right, right_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (x, y) in left.iter().zip(right) {
        for i in 0..LANES {
            lanes[i] = multiply_add::<FUSED>(x[i], y[i], lanes[i]);
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

dispatch! {
    /// Dot product of two slices of one length, in a fixed order that vectorises: sixty-four partial sums, then their
    /// sum.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = fused dot_body
}

/// Maximum; order does not matter.
#[inline(always)]
pub(crate) fn max_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_product_is_one_for_every_length() {
        for len in [1, 15, 16, 17, 48, 63, 64, 65, 200] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let exact: usize = (0..len).map(|i| i * i).sum();
            assert_eq!(dot(&a, &a), exact as f32);
        }
    }

    #[test]
    fn dot_products_agree_with_double_precision() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for dim in [1usize, 15, 64, 100, 3072] {
            let mut draw = || -> Vec<f32> { (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect() };
            let (a, b) = (draw(), draw());
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            for ours in [dot(&a, &b), dot_body::<true>(&a, &b), dot_body::<false>(&a, &b)] {
                assert!((f64::from(ours) - exact).abs() < 1e-4, "{dim}");
            }
        }
    }

    #[test]
    fn sums_and_maxima_cover_the_remainder() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum_of(&values, |v| v), 666.0);
        assert_eq!(max_of(&values), 36.0);
        assert_eq!(max_of(&[-3.0]), -3.0);
    }
}
