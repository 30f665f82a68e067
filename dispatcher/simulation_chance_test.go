package dispatcher

import "time"

// chance is all randomness of a simulation: its seed. What happens to the n-th request of an actor for an object is a pure function of the
// seed and of just that, so that another interleaving, or one more request, does not change all that follows.
type chance uint64

// of is the dice for one decision.
func (c chance) of(what ...string) dice {
	h := uint64(c)*0x9e3779b97f4a7c15 + 0xcbf29ce484222325
	for _, s := range what {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 0x100000001b3
		}
		h = (h ^ 0xff) * 0x100000001b3 // or ("ab", "c") would be ("a", "bc")
	}
	return dice{h}
}

// dice is a short stream of random numbers (splitmix64).
type dice struct{ state uint64 }

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below is a number from 0 to n-1.
func (d *dice) below(n int) int { return int(d.next() >> 33 % uint64(n)) }

// from is a number from lo to hi.
func (d *dice) from(lo, hi int) int { return lo + d.below(hi-lo+1) }

// percent is true that often.
func (d *dice) percent(p int) bool { return d.below(100) < p }

// between is a duration from lo to hi, in milliseconds.
func (d *dice) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(d.below(int((hi-lo)/time.Millisecond)+1))*time.Millisecond
}

// pick is one of these.
func pick[T any](d *dice, from ...T) T { return from[d.below(len(from))] }
