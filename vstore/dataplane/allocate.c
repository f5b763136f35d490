/*
 * allocate.c - copy-on-write without a call to Python: a write to a block that may not be overwritten in place takes the
 * next block of the reserved window, and a record says what of it is there already.
 *
 *      map entry: FRESH ---> record: old entry   parent's data, zeros, or a place that others share
 *                                    new entry   DATA in the window, which no table on disk names yet
 *                                    valid       a bit a sub-block: its bytes are in the new place
 *
 * A sub-block becomes valid when a write that covers it has ended; until then it is read from the old place. What no
 * write has covered is filled from there, but only at commit, when the guest has often written it itself. Formats that
 * keep such bits on disk (extended L2) are never filled; their records live on as the side table of partial blocks.
 *
 *      commit_begin: close the batch, fill --> Python makes tables durable --> commit_end: FRESH becomes DATA
 *
 * One mutex a volume guards the records and the window. `exclusive` keeps new writers off the sub-blocks that are not
 * valid yet, while somebody fills them; writes to valid ones go in place and need no leave. A write that only covers a
 * sub-block in part, meets an exclusive record or an empty window, is Python's: it may wait, a loop may not.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

void fresh_enqueue(struct vs_volume *volume, struct fresh *fresh)
{
	if (fresh->queued)
		return;
	fresh->queued = true;
	fresh->next = NULL;
	*volume->batch_tail = fresh;
	volume->batch_tail = &fresh->next;
	if (++volume->batch_count == volume->batch_limit)
		poke(volume->notice_fd);
}

void fresh_make_valid(struct vs_volume *volume, struct fresh *fresh, uint64_t within, uint64_t length)
{
	uint64_t size = 1ull << volume->sub_shift, end = within + length;

	/* the end of a disk may lie inside a sub-block, whose rest nobody can read */
	if (((fresh->block << volume->shift) + end) == atomic_load(&volume->length))
		end = (end + size - 1) & ~(size - 1);
	for (uint64_t sub = (within + size - 1) >> volume->sub_shift; sub < end >> volume->sub_shift; sub++)
		fresh->valid[sub / 64] |= 1ull << (sub % 64);
	/* a commit may have taken the record while this write was under way, and told of it without these bits */
	if (volume->keeps_masks)
		fresh_enqueue(volume, fresh);
}

bool fresh_all_valid(const struct vs_volume *volume, const struct fresh *fresh)
{
	for (uint32_t sub = 0; sub < volume_units(volume); sub++)
		if (!fresh_is_valid(fresh, sub))
			return false;
	return true;
}

static struct fresh *fresh_of(uint64_t entry)
{
	return (struct fresh *)(uintptr_t)(entry & ((1ull << 48) - 1));
}

/* The piece at `within` whose sub-blocks are all valid, or all not: from the new place or from the old one. */
static struct extent fresh_extent(const struct vs_volume *volume, const struct fresh *fresh, uint64_t within,
				  uint64_t length)
{
	uint32_t first = (uint32_t)(within >> volume->sub_shift), sub = first;
	bool valid = fresh_is_valid(fresh, first);

	while (sub < volume_units(volume) && fresh_is_valid(fresh, sub) == valid)
		sub++;
	uint64_t have = ((uint64_t)sub << volume->sub_shift) - within;
	return entry_extent(valid ? fresh->entry : fresh->old, within, have < length ? have : length);
}

struct extent allocate_extent(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	uint64_t within = offset & (volume_block_size(volume) - 1), in_a_row;

	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, offset >> volume->shift, &in_a_row);
	uint64_t have = volume_block_size(volume) - within;
	if (have < length)
		length = have;
	struct extent extent = entry_state(entry) == STATE_FRESH ? fresh_extent(volume, fresh_of(entry), within, length)
								 : entry_extent(entry, within, length);
	pthread_mutex_unlock(&volume->lock);
	return extent;
}

bool allocates_over(const struct vs_volume *volume, unsigned state)
{
	return volume->sub_shift && (state == VS_HOLE || state == VS_ZERO || state == VS_SHARED);
}

/* ---- writing ---- */

struct fresh *fresh_new(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error)
{
	struct fresh *fresh = calloc(1, sizeof(*fresh));
	*error = -ENOMEM;
	if (!fresh)
		return NULL;
	fresh->block = block;
	fresh->old = entry;
	*error = -ENOBUFS;
	if (!window_take(volume, fresh)) {
		free(fresh);
		return NULL;
	}
	*error = map_store(volume, block, (uint64_t)STATE_FRESH << 60 | (uint64_t)(uintptr_t)fresh);
	if (*error) {
		free(fresh); /* its block of the window leaks until the image is closed */
		return NULL;
	}
	return fresh;
}

/* The record of a block that a write may go to, made now if need be. NULL with *error: -EAGAIN, -ENOBUFS, -ENOMEM. */
struct fresh *fresh_writable(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error)
{
	*error = -EAGAIN;
	if (entry_state(entry) == STATE_FRESH)
		return fresh_of(entry);
	return allocates_over(volume, entry_state(entry)) ? fresh_new(volume, block, entry, error) : NULL;
}

/* Whether [within, within + length) covers whole sub-blocks wherever they are not valid yet. */
static bool covers(const struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length)
{
	uint64_t mask = (1ull << volume->sub_shift) - 1, end = within + length;
	bool last = (fresh->block << volume->shift) + end == atomic_load(&volume->length);

	if (within & mask && !fresh_is_valid(fresh, (uint32_t)(within >> volume->sub_shift)))
		return false;
	return !(end & mask) || last || fresh_is_valid(fresh, (uint32_t)(end >> volume->sub_shift));
}

static bool covers_new(const struct vs_volume *volume, uint64_t block, uint64_t within, uint64_t length)
{
	const struct fresh nothing = { .block = block };

	return covers(volume, &nothing, within, length);
}

int allocate_claim(struct vs_volume *volume, uint64_t offset, uint64_t length, struct extent *extent,
		   struct fresh **claim)
{
	uint64_t block = offset >> volume->shift, within = offset & (volume_block_size(volume) - 1), in_a_row;
	uint64_t have = volume_block_size(volume) - within;
	int error = 0;

	if (have < length)
		length = have;
	*claim = NULL;
	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, block, &in_a_row);
	if (entry_state(entry) == VS_DATA) { /* another write came first, or a commit ended */
		*extent = entry_extent(entry, within, length);
	} else if (entry_state(entry) != STATE_FRESH && !covers_new(volume, block, within, length)) {
		error = -EAGAIN;
	} else {
		struct fresh *fresh = fresh_writable(volume, block, entry, &error);
		if (fresh && !fresh->exclusive && covers(volume, fresh, within, length)) {
			fresh->writers++;
			fresh_enqueue(volume, fresh);
			*claim = fresh;
			*extent = entry_extent(fresh->entry, within, length);
			error = 0;
		} else if (fresh) {
			error = -EAGAIN;
		}
	}
	pthread_mutex_unlock(&volume->lock);
	return error;
}

void allocate_done(struct vs_volume *volume, struct fresh *claim, uint64_t offset, uint64_t length, bool written)
{
	pthread_mutex_lock(&volume->lock);
	if (written)
		fresh_make_valid(volume, claim, offset & (volume_block_size(volume) - 1), length);
	if (!--claim->writers)
		pthread_cond_broadcast(&volume->settled);
	pthread_mutex_unlock(&volume->lock);
}

/*
 * Before the disk gets another end, under the lock: -EBUSY when a record names a block from `blocks` on. A write that ends
 * with the disk inside a sub-block makes that valid, so those under way in the last block end first.
 */
int allocate_end(struct vs_volume *volume, uint64_t blocks)
{
	uint64_t length = atomic_load(&volume->length), in_a_row;

	for (const struct fresh *fresh = volume->batch; fresh; fresh = fresh->next)
		if (fresh->block >= blocks)
			return -EBUSY;
	for (const struct fresh *fresh = volume->committing; fresh; fresh = fresh->committing_next)
		if (fresh->block >= blocks)
			return -EBUSY;
	uint64_t entry = length ? map_look_up(volume, (length - 1) >> volume->shift, &in_a_row) : 0;
	if (entry_state(entry) != STATE_FRESH)
		return 0;
	struct fresh *last = fresh_of(entry);
	last->pins++;
	fresh_make_exclusive(volume, last);
	last->pins--;
	fresh_end_exclusive(volume, last);
	return 0;
}

int vs_volume_notice_fd(vs_volume *volume)
{
	return volume->notice_fd;
}

int vs_volume_allocates(vs_volume *volume, uint32_t sub_shift, int keeps_masks, uint32_t batch_limit)
{
	if (sub_shift < 9 || sub_shift > volume->shift || volume->shift - sub_shift > 9 || !batch_limit ||
	    (keeps_masks && volume->shift - sub_shift > 6))
		return -EINVAL;
	pthread_mutex_lock(&volume->lock);
	volume->sub_shift = sub_shift;
	volume->keeps_masks = keeps_masks;
	volume->batch_limit = batch_limit;
	pthread_mutex_unlock(&volume->lock);
	return 0;
}
