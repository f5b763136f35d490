/*
 * epoch.c - knows when everything that was under way has ended, so that what it may still look at can go: places in a file
 * that a commit freed, tables of the map that were replaced, mappings of a file that has grown.
 *
 *     a loop's turn       loop->turns is odd while it works       nothing a request: drain waits for the end of the turn
 *     io_uring            counted when started ----+--> under_way[epoch & 1] --> uncounted when done
 *     a blocking call     counted all along -------+
 *
 *     drain:   |--- turns that were on have ended ---|--- epoch + 1, so new I/O counts elsewhere ---|--- old count is 0
 *
 * Whoever counts itself looks at the epoch once more afterwards: had it just changed, drain may have seen the old count
 * before, and so it begins again. One drain a volume at a time, hence two counts will do.
 *
 * Quiesce is a flag that writers look at, and a drain. A writer that missed the flag was counted (or in its turn) when the
 * flag was set, so the drain waits for it: both sides use sequentially consistent operations, flag first here, count
 * first there. What writers look at is `guarded`, which counts also the ranges of hold.c.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { YIELDS = 16, NAP_NS = 20000, LONGEST_NAP_NS = 1000000 };

static pthread_mutex_t loops_lock = PTHREAD_MUTEX_INITIALIZER;
static struct loop *loops; /* of all devices */

void epoch_add_loop(struct loop *loop)
{
	pthread_mutex_lock(&loops_lock);
	loop->next = loops;
	loops = loop;
	pthread_mutex_unlock(&loops_lock);
}

void epoch_remove_loop(struct loop *loop)
{
	pthread_mutex_lock(&loops_lock);
	for (struct loop **at = &loops; *at; at = &(*at)->next)
		if (*at == loop) {
			*at = loop->next;
			break;
		}
	pthread_mutex_unlock(&loops_lock);
}

uint32_t epoch_enter(struct vs_volume *volume)
{
	for (;;) {
		uint64_t epoch = atomic_load(&volume->epoch);

		atomic_fetch_add(&volume->under_way[epoch & 1], 1);
		if (LIKELY(atomic_load(&volume->epoch) == epoch))
			return epoch & 1;
		atomic_fetch_sub(&volume->under_way[epoch & 1], 1);
	}
}

void epoch_leave(struct vs_volume *volume, uint32_t entered)
{
	atomic_fetch_sub(&volume->under_way[entered], 1);
}

uint32_t epoch_enter_to_write(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	for (;;) {
		uint32_t entered = epoch_enter(volume);

		if (LIKELY(!atomic_load(&volume->guarded)) || hold_lets_write(volume, offset, length, true))
			return entered;
		epoch_leave(volume, entered);
		hold_wait_to_write(volume, offset, length);
	}
}

uint32_t epoch_enter_to_read(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	for (;;) {
		uint32_t entered = epoch_enter(volume);

		if (LIKELY(!atomic_load(&volume->exclusive)) || hold_lets_read(volume, offset, length, true))
			return entered;
		epoch_leave(volume, entered);
		hold_wait_to_read(volume, offset, length);
	}
}

/* Longer each time: most I/O ends within microseconds, some waits for a disk. */
static void nap(unsigned *times)
{
	long ns = NAP_NS * (1l << (*times / YIELDS < 6 ? *times / YIELDS : 6));

	if ((*times)++ < YIELDS)
		sched_yield();
	else
		nanosleep(&(struct timespec){ .tv_nsec = ns < LONGEST_NAP_NS ? ns : LONGEST_NAP_NS }, NULL);
}

/* Every turn that any loop was in has ended. */
static void wait_for_turns(void)
{
	pthread_mutex_lock(&loops_lock);
	for (struct loop *loop = loops; loop; loop = loop->next) {
		/* not a mere load: the loop's next turn then sees all that was done before this */
		uint64_t turns = atomic_fetch_add(&loop->turns, 0);

		for (unsigned times = 0; turns & 1 && atomic_load(&loop->turns) == turns;)
			nap(&times);
	}
	pthread_mutex_unlock(&loops_lock);
}

void volume_retire(struct vs_volume *volume, void *memory, size_t length)
{
	struct retired *retired = malloc(sizeof(*retired));

	if (!retired)
		return; /* a leak is better than a reader on freed memory */
	*retired = (struct retired){ volume->retired, memory, length };
	volume->retired = retired;
	volume->retired_count++;
}

void retired_free(struct retired *retired)
{
	while (retired) {
		struct retired *gone = retired;

		retired = gone->next;
		if (gone->length)
			munmap(gone->memory, gone->length);
		else
			free(gone->memory);
		free(gone);
	}
}

int vs_volume_drain(vs_volume *volume)
{
	pthread_mutex_lock(&volume->draining);
	pthread_mutex_lock(&volume->lock);
	struct retired *retired = volume->retired;
	volume->retired = NULL;
	volume->retired_count = 0;
	pthread_mutex_unlock(&volume->lock);
	wait_for_turns();
	uint64_t epoch = atomic_fetch_add(&volume->epoch, 1);
	for (unsigned times = 0; atomic_load(&volume->under_way[epoch & 1]);)
		nap(&times);
	pthread_mutex_unlock(&volume->draining);
	retired_free(retired);
	return 0;
}

int vs_volume_quiesce(vs_volume *volume)
{
	atomic_fetch_add(&volume->quiesced, 1);
	atomic_fetch_add(&volume->guarded, 1);
	return vs_volume_drain(volume);
}

int vs_volume_resume(vs_volume *volume)
{
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	if (!atomic_load(&volume->quiesced)) {
		error = -EINVAL;
	} else {
		atomic_fetch_sub(&volume->guarded, 1);
		if (atomic_fetch_sub(&volume->quiesced, 1) == 1)
			pthread_cond_broadcast(&volume->settled);
	}
	pthread_mutex_unlock(&volume->lock);
	return error;
}
