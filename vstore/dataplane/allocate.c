/*
 * allocate.c - copy-on-write without a call to Python: a write to a block that may not be overwritten in place takes the
 * next block of the reserved window, and a record says what of it is there already.
 *
 *      map entry: FRESH ---> record: valid   units in its own place, which perhaps no table on disk names yet
 *                                    zero    units that read as zeros          \ only where the format keeps
 *                                    held    units in a place lent by a snapshot / such bits on disk
 *                                    old     what all other units show: a parent's data, zeros, a hole
 *
 * A unit becomes valid when a write that covers it has ended; until then it is read from where it was. What no write has
 * covered is filled from there, but only at commit, when the guest has often written it itself. Formats that keep such
 * bits on disk (extended L2) fill only what was lent; the records of their partial blocks live on, loaded and committed.
 *
 *      commit_begin: close the batch, fill --> Python makes tables durable --> commit_end: FRESH becomes DATA
 *
 * One mutex a volume guards the records and the window. `exclusive` keeps new writers off the units that are not valid
 * yet, while somebody fills them; writes to valid ones go in place and need no leave. A write that only covers a unit in
 * part, meets an exclusive record or an empty window, is Python's: it may wait, a loop may not.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void fresh_enqueue(struct vs_volume *volume, struct fresh *fresh)
{
	if (fresh->queued)
		return;
	fresh->queued = true;
	fresh->next = NULL;
	*volume->batch_tail = fresh;
	volume->batch_tail = &fresh->next;
	if (++volume->batch_count == volume->allocation.batch_limit)
		poke(volume->notice_fd);
}

void fresh_make_valid(struct vs_volume *volume, struct fresh *fresh, uint64_t within, uint64_t length)
{
	uint32_t shift = volume->allocation.sub_shift;
	uint64_t size = 1ull << shift, end = within + length;

	/* the end of a disk may lie inside a unit, whose rest nobody can read */
	if (((fresh->block << volume->shift) + end) == atomic_load(&volume->length))
		end = (end + size - 1) & ~(size - 1);
	for (uint64_t sub = (within + size - 1) >> shift; sub < end >> shift; sub++) {
		fresh->valid[sub / 64] |= 1ull << (sub % 64);
		if (volume->allocation.keeps_masks) {
			fresh->zero &= ~(1ull << sub);
			fresh->held &= ~(1ull << sub);
		}
	}
	/* a commit may have taken the record while this write was under way, and told of it without these bits */
	if (volume->allocation.keeps_masks)
		fresh_enqueue(volume, fresh);
}

bool fresh_all_valid(const struct vs_volume *volume, const struct fresh *fresh)
{
	for (uint32_t sub = 0; sub < volume_units(volume); sub++)
		if (!fresh_is_valid(fresh, sub))
			return false;
	return true;
}

bool fresh_none_valid(const struct vs_volume *volume, const struct fresh *fresh)
{
	uint64_t any = 0;

	for (uint32_t word = 0; word <= (volume_units(volume) - 1) / 64; word++)
		any |= fresh->valid[word];
	return !any;
}

bool fresh_idle(const struct fresh *fresh)
{
	return !fresh->queued && !fresh->committing && !fresh->writers && !fresh->pins && !fresh->exclusive;
}

/* The entry that tells where a unit is. */
static uint64_t unit_entry(const struct fresh *fresh, uint32_t unit)
{
	if (fresh_is_valid(fresh, unit))
		return fresh->entry;
	if (unit < 64 && fresh->zero >> unit & 1)
		return (uint64_t)VS_ZERO << 60;
	return unit < 64 && fresh->held >> unit & 1 ? fresh->lent : fresh->old;
}

/* The piece at `within` whose units all lie in the same place. */
struct extent fresh_extent(const struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length)
{
	uint32_t shift = volume->allocation.sub_shift, unit = (uint32_t)(within >> shift);
	uint32_t last = (uint32_t)((within + length - 1) >> shift) + 1;
	uint64_t entry = unit_entry(fresh, unit);

	while (unit < last && unit < volume_units(volume) && unit_entry(fresh, unit) == entry)
		unit++;
	uint64_t have = ((uint64_t)unit << shift) - within;
	return entry_extent(entry, within, have < length ? have : length);
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

/* A block that is compressed in this image is given a place as a whole first (vs_volume_replace); units that are so in a
 * parent need not be, where the rest of the block can stay there. */
bool allocates_over(const struct vs_volume *volume, const struct extent *extent)
{
	const vs_allocation *allocation = &volume->allocation;

	if (extent->state == VS_COMPRESSED)
		return allocation->keeps_masks && extent->layer >= allocation->own_layers;
	return allocation->sub_shift &&
	       (extent->state == VS_HOLE || extent->state == VS_ZERO || extent->state == VS_SHARED);
}

/* ---- writing ---- */

/* What a block was, in the bits of its new record. */
static void begin_masks(const struct vs_volume *volume, struct fresh *fresh, uint64_t entry)
{
	struct extent extent = entry_extent(entry, 0, 0);
	bool own = extent.layer < volume->allocation.own_layers;

	if (extent.state == VS_ZERO) {
		fresh->zero = volume_all_units(volume);
		fresh->told = entry_is_kept(entry);
		fresh->entry = fresh->told ? entry_of_kept(entry) : 0;
	} else if (extent.state == VS_SHARED && own) {
		fresh->lent = entry;
		fresh->held = volume_all_units(volume);
	} else if (extent.state == VS_DATA) {
		fresh->entry = entry;
		fresh->valid[0] = volume_all_units(volume);
		fresh->told = true;
	} else {
		return;
	}
	fresh->old = (uint64_t)VS_HOLE << 60; /* no unit shows it */
}

/* A record that says of the block what the map does. NULL with *error: -ENOMEM. */
struct fresh *fresh_new(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error)
{
	struct fresh *fresh = calloc(1, sizeof(*fresh));

	*error = -ENOMEM;
	if (!fresh)
		return NULL;
	fresh->block = block;
	fresh->old = entry;
	if (volume->allocation.keeps_masks)
		begin_masks(volume, fresh, entry);
	*error = map_store(volume, block, 1, fresh_entry(fresh));
	if (!*error)
		return fresh;
	free(fresh);
	return NULL;
}

bool fresh_place(struct vs_volume *volume, struct fresh *fresh)
{
	if (!fresh->entry && entry_is_kept(fresh->old)) {
		fresh->entry = entry_of_kept(fresh->old);
		fresh->told = true;
		fresh->old = (uint64_t)VS_ZERO << STATE_SHIFT;
	}
	return fresh->entry || window_take(volume, fresh);
}

/* The record of a block that a write may go to, with a place of its own, made now if need be. NULL with *error: -EAGAIN,
 * -ENOBUFS, -ENOMEM. */
struct fresh *fresh_writable(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error)
{
	struct extent extent = entry_extent(entry, 0, 0);
	struct fresh *fresh = NULL;

	*error = -ENOBUFS;
	if (extent.state == STATE_FRESH)
		fresh = fresh_of(entry);
	else if (!allocates_over(volume, &extent))
		*error = -EAGAIN;
	else if (volume->window || volume->allocation.identity || entry_is_kept(entry))
		fresh = fresh_new(volume, block, entry, error);
	if (!fresh || fresh_place(volume, fresh))
		return fresh;
	*error = -ENOBUFS;
	return NULL;
}

/* Whether [within, within + length) covers whole units wherever they are not valid yet. */
static bool covers(const struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length)
{
	uint32_t shift = volume->allocation.sub_shift;
	uint64_t mask = (1ull << shift) - 1, end = within + length;
	bool last = (fresh->block << volume->shift) + end == atomic_load(&volume->length);

	if (within & mask && !fresh_is_valid(fresh, (uint32_t)(within >> shift)))
		return false;
	return !(end & mask) || last || fresh_is_valid(fresh, (uint32_t)(end >> shift));
}

static bool covers_new(const struct vs_volume *volume, uint64_t block, uint64_t within, uint64_t length)
{
	const struct fresh nothing = { .block = block };

	return covers(volume, &nothing, within, length);
}

/* What all lies in the record's own place is written to there, and there is nothing to tell of it. */
static bool in_own_place(const struct vs_volume *volume, uint64_t entry, uint64_t within, uint64_t length,
			 struct extent *extent)
{
	if (entry_state(entry) != STATE_FRESH)
		return false;
	*extent = fresh_extent(volume, fresh_of(entry), within, length);
	return extent->state == VS_DATA && extent->length == length;
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
	} else if (!in_own_place(volume, entry, within, length, extent)) {
		struct fresh *fresh = fresh_writable(volume, block, entry, &error);
		/* who waits to be exclusive must not wait for ever, because one write begins before another has ended */
		if (fresh && !fresh->exclusive && !fresh->pins && covers(volume, fresh, within, length)) {
			fresh->writers++;
			if (!volume->allocation.keeps_masks) /* else there is nothing to tell before it has ended */
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
 * Before the disk gets another end, under the lock: -EBUSY when a change names a block from `blocks` on. A write that ends
 * with the disk inside a unit makes that valid, so those under way in the last block end first.
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
	if (zeros_end(volume, blocks))
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

int vs_volume_allocates(vs_volume *volume, const vs_allocation *allocation)
{
	uint32_t shift = allocation->sub_shift, layer = allocation->identity;

	if (shift < 9 || shift > volume->shift || volume->shift - shift > (allocation->keeps_masks ? 6 : 9) ||
	    !allocation->batch_limit || layer > 0xFFF || (layer && !volume->layers[layer]))
		return -EINVAL;
	pthread_mutex_lock(&volume->lock);
	volume->allocation = *allocation;
	pthread_mutex_unlock(&volume->lock);
	return 0;
}
