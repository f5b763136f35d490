/*
 * chunk.h - a megabyte of a stretch, and the mover that it is a part of: what mover.c and chunk.c share.
 */
#ifndef VSTORE_CHUNK_H
#define VSTORE_CHUNK_H

#include "mover.h"

#include <pthread.h>
#include <stdbool.h>

enum { CHUNK = 1 << 20, SLOTS = 8, FEWEST_SLOTS = 2, MOST_BYTES = 64 << 20, MOST_THREADS = 64, LINE = 2 };
enum chunk_state { EMPTY, READING, READY, WRITING };

/* A stretch that is under way. */
struct stretch {
	vs_stretch is;
	uint64_t next;  /* where the chunk that nobody has taken yet begins */
	uint32_t piece; /* the first that is not used up */
	uint64_t last;  /* once all its chunks are taken: the number behind them */
};

/* `where`: for each unit its place in the target, or NOWHERE. */
struct chunk {
	enum chunk_state state;
	const struct stretch *of;
	uint64_t start, end;
	uint32_t piece; /* the first that has something of it */
	uint8_t *bytes;
	uint64_t *where;
};

struct vs_mover {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	pthread_t threads[MOST_THREADS];
	uint32_t started;
	int target;
	uint64_t unit, chunk;
	uint32_t slots;             /* fewer where units are long: one is read while another is written */
	struct chunk chunks[SLOTS]; /* number n has slot n % slots; all from here on is changed under the lock */
	struct stretch line[LINE];  /* number n lies at n % LINE */
	uint64_t begun, cut, told;  /* stretches: how many were started, are all taken, and were waited for */
	uint64_t taken, written;    /* chunks: how many, of all stretches */
	vs_room *rooms;             /* of all stretches, one behind the other */
	uint32_t room_count, room;  /* how many; the first that is not used up */
	uint64_t room_used;         /* bytes of it */
	uint64_t failed;            /* the number of a chunk */
	uint32_t busy;              /* threads */
	int error;
	bool writing, ended;
};

static inline uint64_t down(uint64_t at, uint64_t unit)
{
	return at & ~(unit - 1);
}

static inline uint64_t up(uint64_t at, uint64_t unit)
{
	return (at + unit - 1) & ~(unit - 1);
}

static inline uint64_t lesser(uint64_t one, uint64_t two)
{
	return one < two ? one : two;
}

/* -errno, all three. One chunk after the other is given its places, under the lock: the next one's lie behind. */
int chunk_read(const struct vs_mover *mover, struct chunk *chunk);
int chunk_place(struct vs_mover *mover, struct chunk *chunk);
int chunk_write(const struct vs_mover *mover, const struct chunk *chunk);

#endif
