/*
 * window.c - room for new blocks, reserved by the format ahead of need, so that a loop finds it without asking.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

enum { TRIM_STEPS = 4096 };

struct window {
	uint64_t offset, blocks;
	uint32_t layer;
	bool zeroed; /* reads as zeros until it is written */
	struct window *next;
};

bool window_take(struct vs_volume *volume, struct fresh *fresh)
{
	struct window *window = volume->window;
	uint64_t identity = volume->allocation.identity;

	if (identity) { /* what lies there already is not known */
		fresh->entry = (uint64_t)VS_DATA << 60 | identity << 48 | (fresh->block << volume->shift) >> 9;
		return true;
	}
	if (!window)
		return false;
	fresh->entry = (uint64_t)VS_DATA << 60 | (uint64_t)window->layer << 48 | window->offset >> 9;
	fresh->zeroed = window->zeroed;
	window->offset += volume_block_size(volume);
	if (!--window->blocks) {
		volume->window = window->next;
		if (!volume->window)
			volume->window_tail = &volume->window;
		free(window);
	}
	if (--volume->window_blocks == volume->window_low)
		poke(volume->notice_fd);
	return true;
}

/* A place that nobody was told of is the next to be taken. */
void window_give_back(struct vs_volume *volume, const struct fresh *fresh)
{
	struct window *window = volume->allocation.identity ? NULL : malloc(sizeof(*window));

	if (!window)
		return; /* it is lost until the image is closed */
	*window = (struct window){ .offset = (fresh->entry & OFFSET_MASK) << SECTOR_SHIFT,
				   .blocks = 1,
				   .layer = (fresh->entry >> LAYER_SHIFT) & LAYER_MASK,
				   .next = volume->window };
	if (!volume->window)
		volume->window_tail = &window->next;
	volume->window = window;
	volume->window_blocks++;
}

int vs_volume_give(vs_volume *volume, uint32_t layer, uint64_t offset, uint64_t blocks, int zeroed)
{
	uint64_t bytes, end;

	if (layer > 0xFFF || !volume->layers[layer] || !blocks || offset & 511 ||
	    __builtin_mul_overflow(blocks, volume_block_size(volume), &bytes) ||
	    __builtin_add_overflow(offset, bytes, &end) || end >> 57)
		return -EINVAL;
	struct window *window = malloc(sizeof(*window));
	if (!window)
		return -ENOMEM;
	*window = (struct window){ .offset = offset, .blocks = blocks, .layer = layer, .zeroed = zeroed };
	pthread_mutex_lock(&volume->lock);
	*volume->window_tail = window;
	volume->window_tail = &window->next;
	volume->window_blocks += blocks;
	volume->window_low = volume->window_blocks / 2;
	layer_grown(volume, volume->layers[layer]);
	map_trim(volume, TRIM_STEPS); /* what was written with the room before has opened pages */
	pthread_mutex_unlock(&volume->lock);
	return 0;
}

int vs_volume_take_back(vs_volume *volume, uint32_t *layer, uint64_t *offset, uint64_t *blocks)
{
	pthread_mutex_lock(&volume->lock);
	struct window *window = volume->window;
	if (window) {
		*layer = window->layer;
		*offset = window->offset;
		*blocks = window->blocks;
		volume->window_blocks -= window->blocks;
		volume->window = window->next;
		if (!volume->window)
			volume->window_tail = &volume->window;
	}
	pthread_mutex_unlock(&volume->lock);
	free(window);
	return window != NULL;
}

uint64_t vs_volume_window(vs_volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	uint64_t blocks = volume->window_blocks;
	pthread_mutex_unlock(&volume->lock);
	return blocks;
}

void window_free(struct vs_volume *volume)
{
	uint32_t layer;
	uint64_t offset, blocks;

	while (vs_volume_take_back(volume, &layer, &offset, &blocks) > 0)
		continue;
}
