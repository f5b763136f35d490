/*
 * mover.c - long stretches of a disk copied from file to file, zeros left out: a few threads that read ahead, and always
 * one of them that writes, because file systems let only one write to a file at a time, and the others would spin.
 *
 *   line    [ stretch n    ][ stretch n+1  ]  so that reading goes on where a stretch ends
 *   pieces  |aaaa|..|bbbbbbbb|......|cc|     what the source has of the stretch; all else of it is zeros
 *   chunks  |  0   |  1   |  2   |  3   |    a megabyte each; one without a piece is not even looked at
 *   slots   [WRITING][READY][READING]        whoever finds the next chunk READY writes it, else reads another one
 *   places  where units that hold something go: at their own offset; or into rooms, one behind the other, in the order
 *           of the disk, so that the target's layout does not depend on which thread was quicker
 *
 * What is written starts on its way to the disk at once: little is left for the final fdatasync().
 */
#define _GNU_SOURCE
#include "chunk.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The stretch that has a chunk which nobody has taken yet, or NULL. */
static struct stretch *next_stretch(struct vs_mover *mover)
{
	for (; mover->cut < mover->begun; mover->cut++) {
		struct stretch *stretch = &mover->line[mover->cut % LINE];
		const vs_piece *piece = &stretch->is.pieces[stretch->piece];

		while (stretch->piece < stretch->is.piece_count && piece->start + piece->length <= stretch->next)
			piece = &stretch->is.pieces[++stretch->piece];
		if (stretch->piece < stretch->is.piece_count)
			return stretch;
		stretch->last = mover->taken;
	}
	return NULL;
}

/* The next chunk to be read, under the lock; NULL: none, or none now. */
static struct chunk *take(struct vs_mover *mover)
{
	struct chunk *chunk = &mover->chunks[mover->taken % mover->slots];
	struct stretch *stretch = next_stretch(mover);

	if (!stretch || chunk->state != EMPTY)
		return NULL;
	uint64_t piece = stretch->is.pieces[stretch->piece].start;
	if (piece > stretch->next)
		stretch->next += (piece - stretch->next) / mover->chunk * mover->chunk;
	mover->taken++;
	chunk->state = READING;
	chunk->of = stretch;
	chunk->piece = stretch->piece;
	chunk->start = stretch->next;
	stretch->next = chunk->end = lesser(stretch->next + mover->chunk, stretch->is.end);
	return chunk;
}

static void fail(struct vs_mover *mover, int error, uint64_t number)
{
	if (error && (!mover->error || number < mover->failed)) {
		mover->error = error;
		mover->failed = number;
	}
}

static void read_next(struct vs_mover *mover, struct chunk *chunk)
{
	uint64_t number = mover->taken - 1;

	pthread_mutex_unlock(&mover->lock);
	int error = chunk_read(mover, chunk);
	pthread_mutex_lock(&mover->lock);
	chunk->state = READY;
	fail(mover, error, number);
}

static void write_next(struct vs_mover *mover, struct chunk *chunk)
{
	int error = chunk_place(mover, chunk);

	mover->writing = true;
	chunk->state = WRITING;
	pthread_mutex_unlock(&mover->lock);
	if (!error)
		error = chunk_write(mover, chunk);
	pthread_mutex_lock(&mover->lock);
	mover->writing = false;
	chunk->state = EMPTY;
	fail(mover, error, mover->written++);
	if (mover->taken - mover->written <= mover->slots / 2) /* waking is dear: it has to be for more than one slot */
		pthread_cond_broadcast(&mover->work);
}

/* Under the lock; false: there is nothing to do now. */
static bool work(struct vs_mover *mover)
{
	struct chunk *next = &mover->chunks[mover->written % mover->slots], *chunk;

	if (mover->error)
		return false;
	mover->busy++;
	if (next->state == READY && !mover->writing)
		write_next(mover, next);
	else if ((chunk = take(mover)))
		read_next(mover, chunk);
	else
		next = NULL;
	mover->busy--;
	return next;
}

/* Whether nothing more will become of the oldest stretch. */
static bool complete(const struct vs_mover *mover)
{
	if (mover->error || mover->told == mover->begun)
		return !mover->busy;
	return mover->cut > mover->told && mover->written >= mover->line[mover->told % LINE].last;
}

static void *serve(void *argument)
{
	struct vs_mover *mover = argument;

	pthread_mutex_lock(&mover->lock);
	while (!mover->ended) {
		bool worked = work(mover);

		if (complete(mover))
			pthread_cond_broadcast(&mover->done);
		if (!worked && !mover->ended)
			pthread_cond_wait(&mover->work, &mover->lock);
	}
	pthread_mutex_unlock(&mover->lock);
	return NULL;
}

/* Signals are for the program's own threads. */
static void start_threads(struct vs_mover *mover, uint32_t threads)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (mover->started < threads && !pthread_create(&mover->threads[mover->started], NULL, serve, mover))
		mover->started++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static int make_buffers(struct vs_mover *mover)
{
	uint64_t room = lesser(MOST_BYTES / mover->chunk, SLOTS);

	mover->slots = room < FEWEST_SLOTS ? FEWEST_SLOTS : (uint32_t)room;
	for (uint32_t n = 0; n < mover->slots; n++) {
		struct chunk *chunk = &mover->chunks[n];

		chunk->where = malloc(mover->chunk / mover->unit * sizeof(uint64_t));
		if (!chunk->where || posix_memalign((void **)&chunk->bytes, 4096, mover->chunk))
			return ENOMEM;
	}
	return 0;
}

vs_mover *vs_mover_new(int target, uint64_t unit, uint32_t threads)
{
	vs_mover *mover = calloc(1, sizeof(*mover));

	if (!mover || !threads || threads > MOST_THREADS || unit < 512 || unit & (unit - 1) || unit > 1u << 30) {
		errno = mover ? EINVAL : ENOMEM;
		free(mover);
		return NULL;
	}
	mover->target = target;
	mover->unit = unit;
	mover->chunk = unit > CHUNK ? unit : CHUNK;
	pthread_mutex_init(&mover->lock, NULL);
	pthread_cond_init(&mover->work, NULL);
	pthread_cond_init(&mover->done, NULL);
	int error = make_buffers(mover);
	if (!error)
		start_threads(mover, threads);
	if (mover->started)
		return mover;
	vs_mover_free(mover);
	errno = error ? error : EAGAIN;
	return NULL;
}

void vs_mover_free(vs_mover *mover)
{
	if (!mover)
		return;
	pthread_mutex_lock(&mover->lock);
	mover->ended = true;
	pthread_cond_broadcast(&mover->work);
	pthread_mutex_unlock(&mover->lock);
	for (uint32_t n = 0; n < mover->started; n++)
		pthread_join(mover->threads[n], NULL);
	for (uint32_t n = 0; n < SLOTS; n++) {
		free(mover->chunks[n].bytes);
		free(mover->chunks[n].where);
	}
	free(mover->rooms);
	pthread_cond_destroy(&mover->work);
	pthread_cond_destroy(&mover->done);
	pthread_mutex_destroy(&mover->lock);
	free(mover);
}

/* In the order of the disk, inside the stretch, and no number that could overflow. */
static bool sound(const vs_mover *mover, const vs_stretch *stretch)
{
	uint64_t at = stretch->start;

	if (stretch->start & (mover->unit - 1) || stretch->start >= stretch->end ||
	    stretch->end > INT64_MAX - mover->unit || !stretch->piece_count ||
	    (!stretch->places && (stretch->base > INT64_MAX - stretch->end || stretch->room_count)))
		return false;
	for (uint32_t n = 0; n < stretch->piece_count; n++) {
		const vs_piece *piece = &stretch->pieces[n];

		if (piece->start < at || piece->start >= stretch->end || !piece->length || piece->offset > INT64_MAX ||
		    piece->length > stretch->end - piece->start || piece->length > INT64_MAX - piece->offset)
			return false;
		at = piece->start + piece->length;
	}
	for (uint32_t n = 0; n < stretch->room_count; n++)
		if (stretch->rooms[n].offset > INT64_MAX || stretch->rooms[n].length & (mover->unit - 1) ||
		    stretch->rooms[n].length > INT64_MAX - stretch->rooms[n].offset)
			return false;
	return true;
}

/* Behind what is left of the old ones. */
static int add_rooms(struct vs_mover *mover, const vs_stretch *stretch)
{
	uint32_t left = mover->room_count - mover->room;

	if (!stretch->room_count)
		return 0;
	if (stretch->room_count > UINT32_MAX - left)
		return -ENOMEM;
	vs_room *rooms = malloc(((size_t)left + stretch->room_count) * sizeof(*rooms));
	if (!rooms)
		return -ENOMEM;
	if (left)
		memcpy(rooms, mover->rooms + mover->room, left * sizeof(*rooms));
	memcpy(rooms + left, stretch->rooms, stretch->room_count * sizeof(*rooms));
	free(mover->rooms);
	mover->rooms = rooms;
	mover->room = 0;
	mover->room_count = left + stretch->room_count;
	return 0;
}

static int begin(struct vs_mover *mover, const vs_stretch *stretch)
{
	uint64_t units = up(stretch->end - stretch->start, mover->unit) / mover->unit;
	int error = add_rooms(mover, stretch);

	if (error)
		return error;
	if (stretch->places)
		memset(stretch->places, 0xff, units * sizeof(uint64_t)); /* NOWHERE */
	mover->line[mover->begun++ % LINE] = (struct stretch){ .is = *stretch, .next = stretch->start };
	pthread_cond_broadcast(&mover->work);
	return 0;
}

int vs_mover_start(vs_mover *mover, const vs_stretch *stretch)
{
	int error;

	if (!sound(mover, stretch))
		return -EINVAL;
	pthread_mutex_lock(&mover->lock);
	if (mover->error)
		error = mover->error;
	else if (mover->begun - mover->told == LINE)
		error = -EBUSY;
	else
		error = begin(mover, stretch);
	pthread_mutex_unlock(&mover->lock);
	return error;
}

int vs_mover_wait(vs_mover *mover, uint32_t milliseconds, uint64_t *reached)
{
	struct timespec until;
	int late = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	uint64_t nanoseconds = (uint64_t)until.tv_nsec + milliseconds % 1000 * UINT64_C(1000000);
	until.tv_sec += milliseconds / 1000 + (time_t)(nanoseconds / 1000000000);
	until.tv_nsec = (long)(nanoseconds % 1000000000);
	pthread_mutex_lock(&mover->lock);
	while (!complete(mover) && !late)
		late = pthread_cond_timedwait(&mover->done, &mover->lock, &until);
	bool over = complete(mover);
	*reached = mover->line[mover->told % LINE].next;
	if (over && mover->told < mover->begun)
		mover->told++;
	int error = over ? mover->error : -ETIMEDOUT;
	pthread_mutex_unlock(&mover->lock);
	return error;
}
