/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The race of fork() with the lockless walk of pin_user_pages_fast(), as mm/pin.h
 * has it: who publishes has_pinned, the sequence count, the pin, and the entry.
 * pipeline/check/check model has spin look at all that can happen.
 *
 * Stores go through a store buffer of one entry per CPU for each variable, in
 * any order among variables: what a CPU wrote may be seen late by the other,
 * until a full barrier. That is weaker than any CPU that keeps single variables
 * coherent, but for loads that are early: those of the fast path that matter are
 * ordered by the barriers written beside them, and not modelled out of order.
 *
 * Two page-table entries, so that the walks can meet between them. A pin for
 * writing wants a writable entry, before and after; one for reading takes what is
 * there, and then wants the page marked as the mm's own. Fork clears both in the
 * same place, in no order that anything depends on: one variable is enough.
 *
 * Faults:
 *   NO_ODD     the fast path does not look for an odd count before
 *   NO_RETRY   nor for a changed one afterwards
 *   NO_MB_A    fork has no full barrier after it made the count odd
 *   NO_MB_C    the pin is no full barrier
 *   NO_LATCH   has_pinned is set after the walk
 */
#define N 2

/* What is in memory */
byte seq;
bool has_pinned;
byte pins[N];
bool writable[N] = true;	/* and marked */

/* What a CPU has stored and the other does not see yet */
bool seq_held, has_pinned_held, pin_held[N], wp_held[N];

bool kept[N];		/* the fast path returned a pin of what it found */
bool fork_done, pin_done;

/* A full barrier of fork, and one of the fast path: all is seen by now. */
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

/* Stores get out by themselves, each when it likes. */
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
	fork_mb();			/* and mmap_lock is let go of */
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
		:: else ->		/* take it back */
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
slow:	/* waits for mmap_lock, and breaks the sharing that fork left behind */
	pin_mb();
	pin_done = true
}

/*
 * R8: what the fast path pinned stays with the parent. If it was pinned before
 * fork came to it, fork copied it; if fork came first, the entry was not writable
 * any more. A pinned page that the parent shares is one that it will lose.
 */
active proctype verdict()
{
	fork_done && pin_done;
	!wp_held[0] && !wp_held[1];
	assert(!(kept[0] && !writable[0]));
	assert(!(kept[1] && !writable[1]))
}
