/* SPDX-License-Identifier: GPL-2.0 */
#include "core.h"

int step_1(int value)
{
	return value + 1;
}

int step_2(int value)
{
	return value + 2;
}

int step_3(int value)
{
	return value + 3;
}

int step_4(int value)
{
	return value + 4;
}

int step_5(int value)
{
	return value + 5;
}

int step_6(int value)
{
	return value + 6;
}

int step_7(int value)
{
	return value + 7;
}

int step_8(int value)
{
	return value + 8;
}

int step_9(int value)
{
	return value + 9;
}

int step_10(int value)
{
	return value + 10;
}

int step_11(int value)
{
	return value + 11;
}

int step_12(int value)
{
	return value + 12;
}

