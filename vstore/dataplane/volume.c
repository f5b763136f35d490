/*
 * volume.c - the block map: where each block of a disk lies, merged over every layer of its chain.
 *
 *   whole  one entry for all blocks in a row (raw)              pages[i]   blocks 512 i .. 512 i + 511:
 *                                                                 0                    not loaded: ask Python
 *                                                                 state in bits 63:60  one run, this is its first entry
 *                                                                 else                 address of 512 entries
 *
 * Readers take no lock: words are stored whole, and a table that was replaced stays until the next drain (epoch.c).
 * volume_extent() is the only place in vstore that cuts a range at block boundaries.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { PAGE_ENTRIES = 512, STATE_SHIFT = 60, LAYER_SHIFT = 48, LAYER_MASK = 0xFFF, SECTOR_SHIFT = 9 };
#define OFFSET_MASK ((1ull << LAYER_SHIFT) - 1)

unsigned entry_state(uint64_t entry)
{
	return (unsigned)(entry >> STATE_SHIFT);
}

static bool has_offset(uint64_t entry)
{
	return entry_state(entry) == VS_DATA || entry_state(entry) == VS_SHARED;
}

/* The entry `blocks` further on in the same run. */
static uint64_t advance(const struct vs_volume *volume, uint64_t entry, uint64_t blocks)
{
	return has_offset(entry) ? entry + (blocks << (volume->shift - SECTOR_SHIFT)) : entry;
}

static uint64_t block_count(const struct vs_volume *volume, uint64_t length)
{
	return (length >> volume->shift) + ((length & ((1ull << volume->shift) - 1)) != 0);
}

uint64_t volume_blocks(const struct vs_volume *volume)
{
	return block_count(volume, atomic_load(&volume->length));
}

static uint64_t pages_for(const struct vs_volume *volume, uint64_t length)
{
	return block_count(volume, length) / PAGE_ENTRIES + 1;
}

/* ---- looking up -------------------------------------------------------------------------------- */

/* The entry of a block, and how many blocks from it on are known to follow in a row without another look. */
uint64_t map_look_up(struct vs_volume *volume, uint64_t block, uint64_t *in_a_row)
{
	uint64_t entry = atomic_load_explicit(&volume->whole, memory_order_acquire);

	*in_a_row = UINT64_MAX;
	if (LIKELY(entry))
		return advance(volume, entry, block);
	_Atomic uint64_t *pages = atomic_load_explicit(&volume->pages, memory_order_acquire);
	uint64_t word = atomic_load_explicit(&pages[block / PAGE_ENTRIES], memory_order_acquire);
	unsigned within = block % PAGE_ENTRIES;
	if (!word || entry_state(word)) {
		*in_a_row = PAGE_ENTRIES - within;
		return advance(volume, word, within);
	}
	*in_a_row = 1;
	return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)word + within, memory_order_acquire);
}

/* What an entry says of `length` bytes at `within` its block. */
struct extent entry_extent(uint64_t entry, uint64_t within, uint64_t length)
{
	struct extent extent = { .state = entry_state(entry), .length = length };

	if (has_offset(entry) || extent.state == VS_COMPRESSED)
		extent.layer = (entry >> LAYER_SHIFT) & LAYER_MASK;
	if (has_offset(entry))
		extent.offset = ((entry & OFFSET_MASK) << SECTOR_SHIFT) + within;
	return extent;
}

struct extent volume_extent(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	uint64_t block = offset >> volume->shift, within = offset & ((1ull << volume->shift) - 1);
	uint64_t in_a_row, entry = map_look_up(volume, block, &in_a_row);
	struct extent extent = entry_extent(entry, within, length);

	if (in_a_row == UINT64_MAX)
		return extent;
	if (entry_state(entry) == STATE_FRESH)
		return allocate_extent(volume, offset, length);
	uint64_t have = (in_a_row << volume->shift) - within;
	while (have < length) {
		uint64_t next = block + in_a_row, more;

		if (map_look_up(volume, next, &more) != advance(volume, entry, in_a_row))
			break;
		in_a_row += more;
		have += more << volume->shift;
	}
	if (have < length)
		extent.length = have;
	return extent;
}

/* ---- filling the map ------------------------------------------------------------------------------ */

static void free_page(uint64_t word)
{
	uint64_t *entries = (uint64_t *)(uintptr_t)word;

	if (entry_state(word) || !word)
		return;
	for (unsigned i = 0; i < PAGE_ENTRIES; i++)
		if (entry_state(entries[i]) == STATE_FRESH)
			free((void *)(uintptr_t)(entries[i] & OFFSET_MASK));
	free(entries);
}

/* The 512 entries of a page, made from its run when it is one. */
static _Atomic uint64_t *page_entries(struct vs_volume *volume, uint64_t page)
{
	_Atomic uint64_t *slot = &volume->pages[page];
	uint64_t word = atomic_load(slot);

	if (word && !entry_state(word))
		return (_Atomic uint64_t *)(uintptr_t)word;
	_Atomic uint64_t *entries = calloc(PAGE_ENTRIES, sizeof(*entries));
	if (!entries)
		return NULL;
	for (unsigned i = 0; word && i < PAGE_ENTRIES; i++)
		atomic_store_explicit(&entries[i], advance(volume, word, i), memory_order_relaxed);
	atomic_store_explicit(slot, (uint64_t)(uintptr_t)entries, memory_order_release);
	return entries;
}

static int store_run(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	while (count) {
		uint64_t page = first / PAGE_ENTRIES, within = first % PAGE_ENTRIES;
		uint64_t take = PAGE_ENTRIES - within < count ? PAGE_ENTRIES - within : count;

		if (take == PAGE_ENTRIES) {
			uint64_t old = atomic_exchange(&volume->pages[page], entry);
			if (old && !entry_state(old))
				volume_retire(volume, (void *)(uintptr_t)old, 0);
		} else {
			_Atomic uint64_t *entries = page_entries(volume, page);
			if (!entries)
				return -ENOMEM;
			for (uint64_t i = 0; i < take; i++)
				atomic_store_explicit(&entries[within + i], advance(volume, entry, i),
						      memory_order_release);
		}
		entry = advance(volume, entry, take);
		first += take;
		count -= take;
	}
	return 0;
}

/* Whether every place that the run names fits the 48 bits of an entry and a layer that exists. */
static bool sane_run(const struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	uint64_t blocks = block_count(volume, atomic_load(&volume->length)), last;

	if (first > blocks || count > blocks - first || !count || entry_state(entry) > VS_PARTIAL)
		return false;
	if (!has_offset(entry))
		return true;
	if (!volume->layers[(entry >> LAYER_SHIFT) & LAYER_MASK])
		return false;
	return !__builtin_add_overflow(entry & OFFSET_MASK, (count - 1) << (volume->shift - SECTOR_SHIFT), &last) &&
	       last <= OFFSET_MASK;
}

int map_store(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	uint64_t whole = atomic_load(&volume->whole);
	int error = 0;

	if (whole)
		error = store_run(volume, 0, block_count(volume, atomic_load(&volume->length)), whole);
	if (!error)
		error = store_run(volume, first, count, entry);
	if (!error && whole)
		atomic_store_explicit(&volume->whole, 0, memory_order_release);
	return error;
}

int vs_volume_set_run(vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	uint64_t blocks = volume_blocks(volume), whole = atomic_load(&volume->whole);
	if (!sane_run(volume, first, count, entry)) {
		error = -EINVAL;
	} else if (!first && count == blocks && entry_state(entry)) {
		atomic_store_explicit(&volume->whole, entry, memory_order_release);
	} else {
		if (whole)
			error = store_run(volume, 0, blocks, whole);
		if (!error)
			error = store_run(volume, first, count, entry);
		if (!error)
			atomic_store_explicit(&volume->whole, 0, memory_order_release);
	}
	pthread_mutex_unlock(&volume->lock);
	return error;
}

int vs_volume_set_entries(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	int error = 0;

	for (uint64_t i = 0; i < count && !error; i++)
		error = vs_volume_set_run(volume, first + i, 1, entries[i]);
	return error;
}

int vs_volume_get_entry(vs_volume *volume, uint64_t block, uint64_t *entry)
{
	uint64_t in_a_row;

	if (block >= block_count(volume, atomic_load(&volume->length)))
		return -EINVAL;
	uint32_t entered = epoch_enter(volume);
	*entry = map_look_up(volume, block, &in_a_row);
	epoch_leave(volume, entered);
	return 0;
}

/* ---- layers ---------------------------------------------------------------------------------------- */

int vs_volume_set_layer(vs_volume *volume, uint32_t layer, int fd, uint32_t flags, uint32_t alignment)
{
	if (layer > LAYER_MASK || !alignment || (alignment & (alignment - 1)))
		return -EINVAL;
	struct layer *made = calloc(1, sizeof(*made));
	if (!made)
		return -ENOMEM;
	made->flags = flags;
	made->alignment = alignment;
	made->fd = flags & VS_FILE_NULL ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (made->fd < 0 && !(flags & VS_FILE_NULL)) {
		free(made);
		return -errno;
	}
	int error = 0;
	pthread_mutex_lock(&volume->lock);
	if (volume->layers[layer]) {
		error = -EEXIST;
	} else {
		layer_map(volume, made);
		volume->layers[layer] = made;
	}
	pthread_mutex_unlock(&volume->lock);
	if (error && made->fd >= 0)
		close(made->fd);
	if (error)
		free(made);
	return error;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

vs_volume *vs_volume_new(uint64_t length, uint32_t block_shift)
{
	if (block_shift < SECTOR_SHIFT || block_shift > 31 || length > (uint64_t)INT64_MAX) {
		errno = EINVAL;
		return NULL;
	}
	struct vs_volume *volume = calloc(1, sizeof(*volume));
	if (!volume)
		return NULL;
	volume->shift = block_shift;
	volume->length = length;
	volume->references = 1;
	volume->batch_tail = &volume->batch;
	volume->zeros_tail = &volume->zeros;
	volume->window_tail = &volume->window;
	volume->page_count = pages_for(volume, length);
	volume->notice_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	volume->pages = calloc(volume->page_count, sizeof(*volume->pages));
	pthread_mutex_init(&volume->lock, NULL);
	pthread_mutex_init(&volume->draining, NULL);
	pthread_cond_init(&volume->settled, NULL);
	if (!volume->pages || volume->notice_fd < 0) {
		free((void *)volume->pages);
		free(volume);
		errno = ENOMEM;
		return NULL;
	}
	return volume;
}

void vs_volume_release(vs_volume *volume)
{
	if (!volume || atomic_fetch_sub(&volume->references, 1) != 1)
		return;
	for (uint64_t i = 0; i < volume->page_count; i++)
		free_page(volume->pages[i]);
	free((void *)volume->pages);
	for (unsigned i = 0; i <= LAYER_MASK; i++)
		layer_free(volume->layers[i]);
	retired_free(volume->retired);
	window_free(volume);
	zeros_free(volume);
	close(volume->notice_fd);
	pthread_cond_destroy(&volume->settled);
	pthread_mutex_destroy(&volume->draining);
	pthread_mutex_destroy(&volume->lock);
	free(volume);
}

static int grow_pages(struct vs_volume *volume, uint64_t count)
{
	_Atomic uint64_t *pages = calloc(count, sizeof(*pages));

	if (!pages)
		return -ENOMEM;
	for (uint64_t i = 0; i < volume->page_count; i++)
		atomic_store_explicit(&pages[i], volume->pages[i], memory_order_relaxed);
	volume_retire(volume, (void *)volume->pages, 0);
	atomic_store_explicit(&volume->pages, pages, memory_order_release);
	volume->page_count = count;
	return 0;
}

/* Nothing that was cut off comes back, and a run that all blocks lay in (which the length alone cuts) does not go on into
 * blocks of which only the format knows where they lie. */
static int forget_between(struct vs_volume *volume, uint64_t before, uint64_t after)
{
	uint64_t whole = atomic_load(&volume->whole);
	int error = 0;

	if (whole && after < before)
		return 0;
	if (whole)
		error = store_run(volume, 0, before, whole);
	if (!error && after < before)
		error = store_run(volume, after, before - after, 0);
	else if (!error)
		error = store_run(volume, before, after - before, 0);
	if (!error)
		atomic_store_explicit(&volume->whole, 0, memory_order_release);
	return error;
}

/* Under the lock. -EBUSY: blocks that would be cut off wait for a commit. */
static int resize(struct vs_volume *volume, uint64_t length)
{
	uint64_t before = block_count(volume, volume->length), after = block_count(volume, length);
	int error = allocate_end(volume, after);

	if (!error && pages_for(volume, length) > volume->page_count)
		error = grow_pages(volume, pages_for(volume, length));
	if (!error && before != after)
		error = forget_between(volume, before, after);
	for (unsigned i = 0; !error && i <= LAYER_MASK; i++)
		if (volume->layers[i])
			layer_map(volume, volume->layers[i]);
	if (!error)
		atomic_store(&volume->length, length);
	return error;
}

int vs_volume_resize(vs_volume *volume, uint64_t length)
{
	if (length > (uint64_t)INT64_MAX)
		return -EINVAL;
	pthread_mutex_lock(&volume->lock);
	int error = resize(volume, length);
	pthread_mutex_unlock(&volume->lock);
	return error;
}
