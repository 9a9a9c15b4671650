//! Systematic damage to an input: every test of the targets uses the same.

/// Lengths that no file and no peer can mean.
const LENGTHS: [u64; 3] = [1 << 31, u32::MAX as u64, 1 << 63];

/// The input with about `count` single flips, `count / 4` cuts, and `count / 2` length fields set to
/// 2^31, 2^32 - 1 or 2^63, spread over the whole of it. The first byte stays: it says what is mended.
pub fn of(seed: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let places = move |count: usize| (1..seed.len()).step_by((seed.len() / count.max(1)).max(1));
    let flips = places(count).map(|at| {
        let mut bytes = seed.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let cuts = places(count / 4).map(|len| seed[..len].to_vec());
    let lengths = places(count / 2).enumerate().map(|(n, at)| {
        let length = LENGTHS[n % LENGTHS.len()].to_le_bytes();
        let len = if n % LENGTHS.len() == 2 { 8 } else { 4 };
        // Fields stand on multiples of four, behind the first byte.
        let at = (at - 1) / 4 * 4 + 1;
        let mut bytes = seed.to_vec();
        for (to, from) in bytes[at..].iter_mut().zip(&length[..len]) {
            *to = *from;
        }
        bytes
    });
    flips.chain(cuts).chain(lengths)
}
