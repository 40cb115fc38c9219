/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Model the race of fork() with GUP-fast of pin_user_pages_fast(), as mm/pin.h
 * describes it: has_pinned, the sequence count, the pin and the entry.
 * pipeline/check/check model has spin try every order.
 *
 * Each CPU has a store buffer with one entry for each variable. Stores leave it in
 * any order among variables, so the other CPU may see a store late, until a full
 * barrier. That is weaker than any CPU that keeps single variables coherent, except
 * for early loads. Barriers order the loads of GUP-fast that matter, and the model
 * does not reorder these.
 *
 * There are two page-table entries, so that the walks can meet between them. A pin
 * for writing needs a writable entry before and after. A R/O pin takes any entry,
 * and then needs an exclusive page. fork() clears both in one place, and nothing
 * depends on their order: one variable is enough.
 *
 * Faults:
 *   NO_ODD     GUP-fast does not check for an odd count before the walk
 *   NO_RETRY   GUP-fast does not check for a changed count after the walk
 *   NO_MB_A    fork() has no full barrier after it made the count odd
 *   NO_MB_C    the pin is no full barrier
 *   NO_LATCH   has_pinned is set after the walk
 */
#define N 2

/* Memory */
byte seq;
bool has_pinned;
byte pins[N];
bool writable[N] = true;	/* and exclusive */

/* Store buffers: stores that the other CPU does not see yet */
bool seq_held, has_pinned_held, pin_held[N], wp_held[N];

bool kept[N];		/* GUP-fast returned a pin of this page */
bool fork_done, pin_done;

/* Full barriers of fork() and of GUP-fast: empty the store buffer. */
inline fork_mb()
{
	d_step {
		if
		:: seq_held -> seq++; seq_held = false
		:: else
		fi;
		for (k : 0 .. N - 1) {
			if
			:: wp_held[k] -> writable[k] = false; wp_held[k] = false
			:: else
			fi
		}
	}
}

inline pin_mb()
{
	d_step {
		if
		:: has_pinned_held -> has_pinned = true; has_pinned_held = false
		:: else
		fi;
		for (j : 0 .. N - 1) {
			if
			:: pin_held[j] -> pins[j]++; pin_held[j] = false
			:: else
			fi
		}
	}
}

/* Let each store leave its buffer at any time. */
active proctype drain()
{
end:	do
	:: d_step { seq_held -> seq++; seq_held = false }
	:: d_step { has_pinned_held -> has_pinned = true; has_pinned_held = false }
	:: d_step { pin_held[0] -> pins[0]++; pin_held[0] = false }
	:: d_step { pin_held[1] -> pins[1]++; pin_held[1] = false }
	:: d_step { wp_held[0] -> writable[0] = false; wp_held[0] = false }
	:: d_step { wp_held[1] -> writable[1] = false; wp_held[1] = false }
	od
}

active proctype fork()
{
	byte i, k;
	bool looks;

	seq_held = true;		/* odd */
#ifndef NO_MB_A
	fork_mb();			/* (A) */
#endif
	looks = has_pinned;
	for (i : 0 .. N - 1) {
		if
		:: looks && pins[i] > 0 -> skip	/* the child gets a copy */
		:: else -> wp_held[i] = true
		fi
	}
	fork_mb();			/* (D) */
	seq_held = true;		/* even */
	fork_mb();			/* drops mmap_lock */
	fork_done = true
}

active proctype fast()
{
	byte i, j, s;
	bool ok[N], reading;

	if
	:: reading = true
	:: reading = false
	fi;
#ifndef NO_LATCH
	has_pinned_held = true;
#endif
	s = seq;			/* (B) */
	if
#ifndef NO_ODD
	:: s % 2 == 1 -> goto slow
#endif
	:: else
	fi;
	for (i : 0 .. N - 1) {
		if
		:: !reading && !writable[i] -> break
		:: else
		fi;
		pin_held[i] = true;
#ifndef NO_MB_C
		pin_mb();		/* (C) */
#endif
		if
		:: writable[i] -> ok[i] = true
		:: else ->		/* back off */
			pin_mb();
			pins[i]--;
			break
		fi
	}
#ifdef NO_LATCH
	has_pinned_held = true;
#endif
#ifndef NO_RETRY
	if
	:: seq != s ->
		pin_mb();
		for (i : 0 .. N - 1) {
			if
			:: ok[i] -> pins[i]--; ok[i] = false
			:: else
			fi
		}
		goto slow
	:: else
	fi;
#endif
	for (i : 0 .. N - 1) {
		kept[i] = ok[i]
	}
slow:	/* wait for mmap_lock, unshare the pages that fork() shared */
	pin_mb();
	pin_done = true
}

/*
 * Check that the parent keeps each page that GUP-fast pinned. If the pin came first,
 * fork() copied the page. If fork() came first, the entry was not writable any more.
 * The parent would lose a pinned page that it shares.
 */
active proctype verdict()
{
	fork_done && pin_done;
	!wp_held[0] && !wp_held[1];
	assert(!(kept[0] && !writable[0]));
	assert(!(kept[1] && !writable[1]))
}
