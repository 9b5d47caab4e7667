/* SPDX-License-Identifier: GPL-2.0 */
#define LIMIT	8
int step_1(int value);
int step_2(int value);
int step_3(int value);
int step_4(int value);
int step_5(int value);
int step_6(int value);
int step_7(int value);
int step_8(int value);
int step_9(int value);
int step_10(int value);
int step_11(int value);
int step_12(int value);
